/** Disks of a domain that are not those that their bitmaps are thought to belong to. One domain's story. */

import { chmod, copyFile, open, readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type BackupJson, BackupLab, expectExit } from "../support/backup-lab.js";
import { describeWithLibvirt, virsh } from "../support/libvirt-lab.js";
import { finished, nbdpull, startNbdpull } from "../support/nbdpull.js";
import { qemuImg } from "../support/qemu-nbd.js";

const MiB = 1024 * 1024;
const SIZE = 32 * MiB;
const OTHER = expect.stringMatching(
  /^the disk is not the one that its base was taken from: guest offset \d+ /,
);

type ProvenJson = BackupJson & {
  readonly proofs: readonly { readonly disk: string; readonly compared: number; readonly changed?: string }[];
};

await describeWithLibvirt("an increment of a disk that is not the one of its base", () => {
  let guest: BackupLab;
  beforeAll(async () => {
    guest = await BackupLab.start({ sizes: { vda: SIZE, vdb: SIZE } });
    await guest.lab.write("vda", 0, 8 * MiB, 0x11);
    await guest.lab.write("vdb", 0, 8 * MiB, 0x22);
    await guest.lab.write("vda", 30 * MiB, 2 * MiB, 0x13);
    expect((await guest.take()).level).toBe("full");
  });
  afterAll(() => guest[Symbol.asyncDispose]());

  const modes = ({ disks }: BackupJson): string[] => disks.map(({ mode }) => mode);

  /** Takes a point, which has to show the disks as they are. */
  async function takeRight(...more: readonly string[]): Promise<ProvenJson> {
    const copies = await guest.copyNow();
    const taken = await guest.take(...more);
    await guest.expectPoint(taken.id, copies);
    return taken as ProvenJson;
  }

  it("takes two disks in full whose images were exchanged in the definition, and goes on from there", async () => {
    const { lab } = guest;
    const before = (await takeRight()) as ProvenJson;
    expect(modes(before)).toEqual(["incremental", "incremental"]);
    expect(before.proofs).toMatchObject([
      { disk: "vda", compared: 64 },
      { disk: "vdb", compared: 64 },
    ]);
    expect(before.proofs.map(({ changed }) => changed)).toEqual([undefined, undefined]);
    await lab.powerOff();
    const [vda, vdb] = [lab.image("vda"), lab.image("vdb")];
    await lab.redefine((xml) => xml.replace(vda, "IMAGE").replace(vdb, vda).replace("IMAGE", vdb));
    await lab.powerOn();
    await lab.write("vda", 12 * MiB, MiB, 0x31);
    const swapped = await takeRight();
    expect(swapped.disks).toMatchObject([
      { mode: "full", parent: null, reason: OTHER },
      { mode: "full", parent: null, reason: OTHER },
    ]);
    expect(swapped.proofs.map(({ changed }) => changed)).toEqual(["source, inode", "source, inode"]);
    await lab.write("vda", 16 * MiB, MiB, 0x32);
    const next = await takeRight();
    expect(modes(next)).toEqual(["incremental", "incremental"]);
    await guest.expectNothingLeft();
  }, 480_000);

  it("compares all that is clean of a disk whose image was moved, and takes its increment", async () => {
    const { lab } = guest;
    await lab.powerOff();
    const moved = join(lab.folder, "moved.qcow2");
    // vda's image since they were exchanged.
    await copyFile(lab.image("vdb"), moved);
    await lab.redefine((xml) => xml.replace(lab.image("vdb"), moved));
    await lab.powerOn();
    const taken = await takeRight();
    expect(modes(taken)).toEqual(["incremental", "incremental"]);
    const [vda, vdb] = taken.proofs;
    expect(vda).toMatchObject({ changed: "source, inode" });
    expect(vda?.compared).toBeGreaterThan(128);
    expect([vdb?.compared, vdb?.changed]).toEqual([64, undefined]);
    await lab.powerOff();
    await copyFile(moved, lab.image("vdb"));
    await lab.redefine((xml) => xml.replace(moved, lab.image("vdb")));
    await lab.powerOn();
  }, 480_000);

  it("takes a disk in full over which another's image was copied while the domain was off", async () => {
    const { lab } = guest;
    await lab.powerOff();
    await copyFile(lab.image("vdb"), lab.image("vda"));
    await lab.powerOn();
    // The images of vda and vdb have changed places above.
    const taken = await takeRight();
    expect(taken.disks).toMatchObject([{ mode: "incremental" }, { mode: "full", reason: OTHER }]);
  }, 480_000);

  it("takes a disk in full that a tool without bitmaps has written to, off and by attach", async () => {
    const { lab } = guest;
    const { checkpoint } = await guest.take();
    await lab.powerOff();
    const image = lab.image("vdb");
    const map = JSON.parse(await qemuImg("map", "--output=json", "-f", "qcow2", image)) as {
      data: boolean;
      offset: number;
    }[];
    const data = map.find((extent) => extent.data);
    await using file = await open(image, "r+");
    await file.write(Buffer.alloc(2 * MiB, 0x77), 0, 2 * MiB, data?.offset);
    const off = (await guest.take()) as ProvenJson;
    expect(off.disks).toMatchObject([{ mode: "full", reason: OTHER }, { mode: "incremental" }]);
    const target = join(guest.folder, "off");
    expectExit(
      await nbdpull("restore", guest.repo, lab.domain, "--at", off.id, "--to", target, "--format", "raw"),
      0,
    );
    // Of the exchanged disks again.
    await qemuImg("compare", "-F", "qcow2", join(target, "vda.raw"), lab.image("vdb"));
    await qemuImg("compare", "-F", "qcow2", join(target, "vdb.raw"), lab.image("vda"));
    await lab.powerOn();
    const copies = await guest.copyNow();
    await using _ = await lab.beginBackup({ incremental: checkpoint ?? "", checkpoint: "theirs" });
    const attached = await nbdpull(
      "attach",
      lab.domain,
      "--to",
      guest.repo,
      "--checkpoint",
      "theirs",
      "--json",
    );
    expectExit(attached, 0);
    const point = attached.json() as BackupJson;
    expect(point.disks).toMatchObject([{ mode: "full", reason: OTHER }, { mode: "incremental" }]);
    await guest.expectPoint(point.id, copies);
  }, 480_000);

  /** Connections to the sockets in the folder for scratch files. */
  async function connections(): Promise<number> {
    const sockets = (await readFile("/proc/net/unix", "utf8")).split("\n");
    return sockets.filter((line) => line.includes(`${guest.scratch}/`) && / 0001 03 /.test(line)).length;
  }

  it("compares the living disks with their chain, and leaves nothing but what was there", async () => {
    const { lab } = guest;
    const live = ["verify", guest.repo, "--live", lab.domain, "--scratch", guest.scratch];
    await guest.take();
    await lab.write("vda", 5 * MiB, MiB, 0x55);
    const [points, checkpoints] = [await guest.points(), await guest.checkpoints()];
    const sound = await nbdpull(...live, "--json");
    expectExit(sound, 0);
    expect(sound.json()).toMatchObject({
      differs: false,
      disks: [
        { disk: "vda", point: points.at(-1)?.id, comparedBytes: SIZE - MiB, findings: [] },
        { disk: "vdb", point: points.at(-1)?.id, comparedBytes: SIZE, findings: [] },
      ],
    });
    await guest.expectNothingLeft();
    // As root, a repository that others can write to decides on nothing unless the user trusts it.
    await chmod(guest.repo, 0o777);
    const strange = await nbdpull(...live, "--json");
    expect([strange.code, strange.json()]).toMatchObject([4, { error: { code: "E_STRANGERS" } }]);
    expectExit(await nbdpull(...live, "--trust-repository"), 0);
    await chmod(guest.repo, 0o755);
    await guest.expectNothingLeft();
    // Writes without QEMU, in the middle of what the guest has written.
    await lab.powerOff();
    const map = JSON.parse(await qemuImg("map", "--output=json", "-f", "qcow2", lab.image("vdb"))) as {
      data: boolean;
      offset: number;
      start: number;
    }[];
    const data = map.find((extent) => extent.data);
    {
      await using file = await open(lab.image("vdb"), "r+");
      await file.write(Buffer.alloc(128 * 1024, 0x78), 0, 128 * 1024, (data?.offset ?? 0) + 3 * 65_536);
    }
    await lab.powerOn();
    const differing = await nbdpull(...live, "--json");
    expectExit(differing, 3);
    const finding = { guestOffset: (data?.start ?? 0) + 3 * 65_536, length: 128 * 1024 };
    expect(differing.json()).toMatchObject({
      differs: true,
      disks: [{ findings: [finding] }, { findings: [] }],
    });
    expect((await nbdpull(...live)).stdout).toContain(`guest offset ${finding.guestOffset}, 131072 bytes: `);
    await guest.expectNothingLeft();
    expect(await guest.points()).toEqual(points);
    expect(await guest.checkpoints()).toEqual(checkpoints);
    // Interrupted, it leaves nothing either.
    const slow = startNbdpull([...live, "--limit-rate", "1M"]);
    await expect.poll(() => virsh("domjobinfo", lab.domain)).toContain("Backup");
    slow.kill("SIGINT");
    expectExit(await finished(slow), 130);
    await guest.expectNothingLeft();
    // At this rate the comparison takes four minutes.
    const ended = startNbdpull([...live, "--limit-rate", "256K", "--json"]);
    // QEMU 7.2.22 hangs if a job is ended while a client is in its handshake, which takes milliseconds.
    await expect.poll(connections).toBeGreaterThanOrEqual(2);
    await sleep(1500);
    const began = performance.now();
    await virsh("domjobabort", lab.domain);
    const ran = await finished(ended);
    expect(performance.now() - began).toBeLessThan(120_000);
    expect([ran.code, ran.json()]).toMatchObject([4, { error: { code: "E_JOB_ENDED" } }]);
    await guest.expectNothingLeft();
    expectExit(await nbdpull("verify", guest.repo, lab.domain, "--scratch", guest.scratch), 2);
    expectExit(await nbdpull(...live, "--at", "latest"), 2);
  }, 480_000);

  it("takes a disk in full that was shrunk and has grown again, though its bitmap is silent", async () => {
    const { lab } = guest;
    // What was written without QEMU, above.
    expect(modes(await takeRight("--prove-base", "all"))).toEqual(["full", "incremental"]);
    await lab.powerOff();
    for (const size of [6 * MiB, SIZE]) {
      await qemuImg("resize", "-q", "--shrink", "-f", "qcow2", lab.image("vdb"), String(size));
    }
    await lab.powerOn();
    const ran = await nbdpull("backup", lab.domain, "--to", guest.repo, "--scratch", guest.scratch);
    expectExit(ran, 0);
    expect(ran.stdout).toMatch(/vda: .* full \(the disk is not the one .*; found among \d+ clusters? \(seed/);
    expect(ran.stdout).toMatch(
      /vdb: .* changed since .*; its base fits in \d+ clusters \(seed [0-9a-f]{16}\)/,
    );
    const points = await guest.points();
    await guest.expectPoint(points.at(-1)?.id ?? "", await guest.copyNow());
  }, 480_000);
});
