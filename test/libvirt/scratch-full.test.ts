import { open } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { describeWithLibvirt, virsh } from "../support/libvirt-lab.js";
import { attachLoop } from "../support/loop-device.js";
import { finished, type Ran, type Running, startNbdpull } from "../support/nbdpull.js";
import { SshHost } from "../support/ssh-host.js";

const MiB = 1024 * 1024;
const SLOWLY = ["--limit-rate", "256K", "--request-size", "64K"] as const;

/** The guest writes repeatedly until `run` has ended; throws if one of its writes fails. */
async function writeUntilEnd({ lab }: BackupLab, run: Running): Promise<Ran> {
  let ended = false;
  const ran = finished(run).finally(() => {
    ended = true;
  });
  for (let round = 0; !ended; round += 1) {
    await lab.write("vda", (round % 32) * MiB, MiB, 0x70 + (round % 16));
  }
  return await ran;
}

await describeWithLibvirt("a guest that would fill the scratch files of a slow backup", () => {
  it("sees no write fail: the backup is given up, leaves nothing, and the next backup works", async () => {
    await using guest = await BackupLab.start({ sizes: { vda: 32 * MiB, vdb: MiB } }, 24 * MiB);
    await guest.lab.write("vda", 0, 32 * MiB, 0x11);
    const good = await guest.take();
    await guest.lab.write("vda", 0, 32 * MiB, 0x12);
    const ran = await writeUntilEnd(guest, await guest.startSlowly());
    expectExit(ran, 4);
    expect(ran.json()).toMatchObject({
      error: {
        code: "E_SCRATCH_FULL",
        domain: guest.lab.domain,
        message: expect.stringMatching(/left there, going by .* a second: .*--scratch/),
      },
    });
    await guest.expectNothingLeft();
    expect(await guest.checkpoints()).toEqual([good.checkpoint]);
    expect(await guest.points()).toHaveLength(1);

    const next = await guest.take();
    expect(next.disks[0]).toMatchObject({ parent: good.id, dirtyBytes: 32 * MiB });
    await guest.expectPoint(next.id, await guest.copyNow());
    const refused = await guest.run("--scratch-reserve", "25M");
    expectExit(refused, 4);
    expect(refused.json()).toMatchObject({ error: { code: "E_SCRATCH_FULL" } });
    await guest.expectNothingLeft();
  }, 480_000);

  it("sees no write fail with attach either, which leaves the job to its owner, or ends it with --end-job", async () => {
    await using guest = await BackupLab.start({ sizes: { vda: 32 * MiB, vdb: MiB } }, 24 * MiB);
    const { lab, repo, scratch } = guest;
    await lab.write("vda", 0, 32 * MiB, 0x11);
    for (const endJob of [false, true]) {
      await using job = await lab.beginBackup({ transport: "tcp", scratchFolder: scratch });
      const may = endJob ? ["--end-job"] : [];
      const run = startNbdpull(["attach", lab.domain, "--to", repo, "--json", ...SLOWLY, ...may]);
      await expect.poll(() => guest.beside()).toContainEqual(expect.stringMatching(/\.partial$/));
      const ran = await writeUntilEnd(guest, run);
      expectExit(ran, 4);
      const message = endJob ? /The job was ended/ : /end it now, `virsh domjobabort/;
      expect(ran.json()).toMatchObject({
        error: { code: "E_SCRATCH_FULL", message: expect.stringMatching(message) },
      });
      const xml = virsh("backup-dumpxml", lab.domain);
      if (endJob) await expect(xml).rejects.toThrow(/no domain backup job/);
      else expect((await xml).trim()).toBe(job.xml.trim());
    }
    expect(await guest.points()).toEqual([]);
    expect(await guest.beside()).toEqual([]);
  }, 480_000);

  it("sees no write fail with scratch files on another host, of which QEMU tells", async () => {
    await using host = await SshHost.start();
    await using guest = await BackupLab.start({ sizes: { vda: 32 * MiB, vdb: MiB } }, 24 * MiB);
    guest.start = { inside: host.inside(guest.scratch) };
    await guest.lab.write("vda", 0, 32 * MiB, 0x11);
    const ran = await writeUntilEnd(guest, await guest.startSlowly("--connect", host.uri));
    expectExit(ran, 4);
    expect(ran.json()).toMatchObject({
      error: {
        code: "E_SCRATCH_FULL",
        message: expect.stringMatching(/the scratch images of .* left there/),
      },
    });
    await guest.expectNothingLeft();
    const refused = await guest.run("--connect", host.uri, "--scratch-reserve", "25M");
    expectExit(refused, 4);
    expect(refused.json()).toMatchObject({ error: { code: "E_SCRATCH_FULL" } });
  }, 480_000);

  it("sees no write fail with scratch images on devices, of which QEMU tells", async () => {
    await using guest = await BackupLab.start({ sizes: { vda: 32 * MiB, vdb: MiB } });
    const { lab, repo, folder } = guest;
    await lab.write("vda", 0, 32 * MiB, 0x11);
    const file = join(folder, "device");
    await using handle = await open(file, "w");
    await handle.truncate(24 * MiB);
    await using device = await attachLoop(file);
    await using _ = await lab.beginBackup({ perDisk: { vda: { scratchDevice: device.path } } });
    const run = startNbdpull(["attach", lab.domain, "--to", repo, "--json", ...SLOWLY, "--end-job"]);
    await expect.poll(() => guest.beside()).toContainEqual(expect.stringMatching(/\.partial$/));
    const ran = await writeUntilEnd(guest, run);
    expectExit(ran, 4);
    expect(ran.json()).toMatchObject({
      error: { code: "E_SCRATCH_FULL", folder: device.path, message: expect.stringContaining(device.path) },
    });
  }, 480_000);
});
