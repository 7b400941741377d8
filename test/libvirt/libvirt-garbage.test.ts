/**
 * A libvirt that misbehaves from the begin of a full backup on: a clear error, nothing committed, nothing
 * left for ever.
 */
import { randomBytes } from "node:crypto";
import { expect, it } from "vitest";
import { encodePacket, type Packet } from "../../src/backup/libvirt/rpc/packets.js";
import { BackupLab } from "../support/backup-lab.js";
import { LibvirtInFront } from "../support/libvirt-in-front.js";
import { describeWithLibvirt } from "../support/libvirt-lab.js";
import { runNbdpull } from "../support/nbdpull.js";

const MiB = 1024 * 1024;

/** What comes in the place of an answer, and what is said of it. */
const GARBAGE: readonly (readonly [string, (answer: Packet) => Buffer, RegExp])[] = [
  [
    "bytes that are no packet",
    () => Buffer.concat([Buffer.alloc(4), randomBytes(64)]),
    /a packet of 0 bytes/,
  ],
  ["a packet of 2 GiB", () => Buffer.from("7fffffff", "hex"), /a packet of 2147483647 bytes/],
  [
    "an answer to a call that nobody made",
    (answer) => encodePacket({ ...answer, serial: answer.serial + 1000 }),
    /an answer to call \d+, which nobody made/,
  ],
];

await describeWithLibvirt("a libvirt that sends garbage from the begin of a full backup on", () => {
  it("is named, and the job is ended over another connection, or by the next run", async () => {
    await using guest = await BackupLab.start({ sizes: { vda: 16 * MiB, vdb: MiB } });
    await guest.lab.write("vda", 0, 2 * MiB, 0x11);
    using front = new LibvirtInFront(guest.folder);
    for (const [what, instead, said] of GARBAGE) {
      // In place of the answer to the begin.
      let left = 1;
      const spoil = (answer: Packet): Buffer | undefined => {
        if (!front.asked.includes("begin") || left === 0) return undefined;
        left -= 1;
        return instead(answer);
      };
      front.asked.length = 0;
      const ran = await runNbdpull(guest.arguments(), { env: front.env({ spoil }) });
      expect([what, ran.code, left]).toEqual([what, 1, 0]);
      expect(ran.json()).toMatchObject({ error: { message: expect.stringMatching(said) } });
      expect(await guest.points()).toEqual([]);
      await guest.expectNothingLeft();
    }
    // From the begin on it says nothing else.
    front.asked.length = 0;
    const spoil = (): Buffer | undefined => (front.asked.includes("begin") ? Buffer.alloc(64) : undefined);
    const ran = await runNbdpull(guest.arguments(), { env: front.env({ spoil }) });
    expect(ran.code).toBe(1);
    expect(ran.stderr).toContain("the next backup will do it");
    expect(await guest.points()).toEqual([]);
    const taken = await guest.take();
    expect(taken.level).toBe("full");
    await guest.expectNothingLeft();
    await guest.expectPoint(taken.id, await guest.copyNow());
  }, 480_000);
});
