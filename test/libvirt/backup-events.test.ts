/** A job that ends while its disks are read: the pull stops in that moment, with libvirt's reason. */
import { afterAll, beforeAll, expect, it } from "vitest";
import { BackupLab } from "../support/backup-lab.js";
import { describeWithLibvirt, LAB_DISKS, virsh } from "../support/libvirt-lab.js";
import { finished, type Running } from "../support/nbdpull.js";

const MiB = 1024 * 1024;

await describeWithLibvirt("a backup whose job ends while it pulls", () => {
  let guest: BackupLab;
  beforeAll(async () => {
    guest = await BackupLab.start({ sizes: { vda: 64 * MiB, vdb: 64 * MiB } });
    for (const disk of LAB_DISKS) await guest.lab.write(disk, 0, 64 * MiB, 0x11);
  });
  afterAll(async () => {
    await guest[Symbol.asyncDispose]();
  });

  /** The whole disk would take four minutes, and libvirt may be late by half a minute. */
  async function expectStopped(run: Running, code: number, error: object): Promise<void> {
    const began = performance.now();
    const ran = await finished(run);
    expect(performance.now() - began).toBeLessThan(120_000);
    expect([ran.code, ran.json()]).toMatchObject([code, { error }]);
    expect(await guest.points()).toEqual([]);
    expect(await guest.beside()).toEqual([]);
  }

  it("stops when somebody ends its job", async () => {
    // QEMU 7.2.22 hangs if a job is ended while a client connects: a disk with an image has its one
    // connection.
    const run = await guest.startSlowly("--connections", "1");
    await expect
      .poll(async () => (await guest.inPartial()).filter((name) => name.endsWith(".qcow2")))
      .toHaveLength(2);
    await virsh("domjobabort", guest.lab.domain);
    const message = expect.stringContaining("(libvirt: Operation canceled)");
    await expectStopped(run, 4, { code: "E_JOB_ENDED", message });
  }, 480_000);

  it("stops when the domain is destroyed", async () => {
    const run = await guest.startSlowly();
    await virsh("destroy", guest.lab.domain);
    const message = expect.stringContaining("(libvirt: shut off (destroyed))");
    await expectStopped(run, 1, { code: "E_GUEST_ENDED", message });
  }, 480_000);
});
