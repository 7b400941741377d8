import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { stopLibvirtd } from "../support/libvirt-daemon.js";
import { describeWithLibvirt } from "../support/libvirt-lab.js";
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
});
