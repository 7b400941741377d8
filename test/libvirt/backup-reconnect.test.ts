/** A backup over a line that breaks: it goes on inside its frozen point, and never beyond the job's end. */

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, it } from "vitest";
import { freePort } from "../../bench/free-ports.js";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { anyLength, CuttingLine } from "../support/cutting-line.js";
import { describeWithLibvirt, LAB_DISKS, virsh } from "../support/libvirt-lab.js";
import { finished } from "../support/nbdpull.js";

const MiB = 1024 * 1024;
/** QEMU listens on one address of this machine, and the line on another one. */
const LINE = "127.0.0.2";

await describeWithLibvirt("a backup over a line that breaks", () => {
  let guest: BackupLab;
  beforeAll(async () => {
    guest = await BackupLab.start({ sizes: { vda: 64 * MiB, vdb: 32 * MiB } });
    for (const disk of LAB_DISKS) await guest.lab.write(disk, MiB, 24 * MiB, 0x11);
  });
  afterAll(async () => {
    await guest[Symbol.asyncDispose]();
  });

  async function line(lengths?: Iterator<number>) {
    const port = await freePort();
    const options = ["--server", `tcp:127.0.0.1:${port}`, "--host-override", LINE];
    return {
      options,
      line: await CuttingLine.to({ host: "127.0.0.1", port }, lengths, { host: LINE, port }),
    };
  }

  it("stores every byte of the frozen point, in full and as an increment, and counts the losses", async () => {
    const broken = await line(anyLength(5, 300, 3 * MiB));
    await using _ = broken.line;
    for (const level of ["full", "incremental"]) {
      const copies = await guest.copyNow();
      const taken = await guest.take(...broken.options);
      expect(taken.level).toBe(level);
      await guest.expectPoint(taken.id, copies);
      const outages = { connectionsLost: expect.any(Number), secondsWaited: expect.any(Number) };
      expect(taken.disks[0]).toMatchObject({ outages });
      const manifest = await readFile(join(guest.repo, guest.lab.domain, taken.id, "point.json"), "utf8");
      expect(JSON.parse(manifest)).toMatchObject({ disks: [{ outages }, {}] });
      await guest.expectNothingLeft();
      for (const disk of LAB_DISKS) await guest.lab.write(disk, 3 * MiB, 9 * MiB, 0x22);
    }
    expect(broken.line.cuts).toBeGreaterThan(10);
  }, 480_000);

  it("doesn't wait for the line once the job has ended, or the guest", async () => {
    const cut = await line();
    await using _ = cut.line;
    for (const [end, code] of [
      ["domjobabort", "E_JOB_ENDED"],
      ["destroy", "E_GUEST_ENDED"],
    ] as const) {
      const before = await guest.points();
      const run = await guest.startSlowly("--level", "copy", ...cut.options);
      await sleep(500);
      cut.line.isDown = true;
      cut.line.cut();
      await sleep(500);
      await virsh(end, guest.lab.domain);
      const since = performance.now();
      const ran = await finished(run);
      cut.line.isDown = false;
      // The line is waited for longer, and libvirt may be late by half a minute.
      expect(performance.now() - since).toBeLessThan(90_000);
      expect(ran.json()).toMatchObject({ error: { code } });
      expect(ran.code).not.toBe(0);
      expect(await guest.points()).toEqual(before);
    }
    expectExit(await guest.run("--level", "copy"), 0);
  }, 480_000);
});
