import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { stopLibvirtd } from "../support/libvirt-daemon.js";
import { describeWithLibvirt, virsh } from "../support/libvirt-lab.js";
import { finished } from "../support/nbdpull.js";

const MiB = 1024 * 1024;

await describeWithLibvirt("a backup during which libvirtd is restarted", () => {
  it("continues, and retries to end its job until libvirtd is back", async () => {
    await using guest = await BackupLab.start({ sizes: { vda: 16 * MiB, vdb: MiB } });
    await guest.lab.write("vda", 0, 16 * MiB, 0x11);
    const full = await guest.take();
    await guest.lab.write("vda", 0, 2 * MiB, 0x12);
    const copies = await guest.copyNow();
    const run = await guest.startSlowly();
    {
      await using _ = await stopLibvirtd();
      // By then everything is read, and libvirt is asked whether the job is still alive.
      await sleep(4000);
    }
    const ran = await finished(run);
    expectExit(ran, 0);
    expect(ran.json()).toMatchObject({ warnings: [], disks: [{ parent: full.id, dirtyBytes: 2 * MiB }, {}] });
    await guest.expectNothingLeft();
    const next = await guest.take();
    expect(next.disks[0]).toMatchObject({ mode: "incremental", dirtyBytes: 0 });
    await guest.expectPoint(next.id, copies);
  }, 480_000);

  it("is told of its job's end, too", async () => {
    await using guest = await BackupLab.start({ sizes: { vda: 64 * MiB, vdb: MiB } });
    await guest.lab.write("vda", 0, 64 * MiB, 0x11);
    const run = await guest.startSlowly();
    {
      await using _ = await stopLibvirtd();
      await sleep(500);
    }
    // It asks twice a second whether libvirtd is back.
    await sleep(2000);
    await virsh("domjobabort", guest.lab.domain);
    const ended = performance.now();
    const ran = await finished(run);
    // At 1 MiB/s the disk would take a minute.
    expect(performance.now() - ended).toBeLessThan(20_000);
    expect([ran.code, ran.json()]).toMatchObject([4, { error: { code: "E_JOB_ENDED" } }]);
    await guest.expectNothingLeft();
  }, 240_000);
});
