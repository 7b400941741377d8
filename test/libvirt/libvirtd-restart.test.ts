import { rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, it } from "vitest";
import { type BackupJson, BackupLab, expectExit, ofCalmLibvirt } from "../support/backup-lab.js";
import { stopLibvirtd } from "../support/libvirt-daemon.js";
import { describeWithLibvirt, LAB_DISKS, Lab, virsh } from "../support/libvirt-lab.js";
import { finished, type Running, startNbdpull } from "../support/nbdpull.js";
import { stallEvents } from "../support/stalled-libvirt.js";
import { startAll } from "../support/start-all.js";

const MiB = 1024 * 1024;

await describeWithLibvirt("a backup during which libvirtd is restarted", () => {
  it("continues, and retries to end its job until libvirtd is back", async () => {
    await using guest = await BackupLab.start({ sizes: { vda: 16 * MiB, vdb: MiB } });
    await guest.lab.write("vda", 0, 16 * MiB, 0x11);
    const full = await guest.take();
    await guest.lab.write("vda", 0, 2 * MiB, 0x12);
    const copies = await guest.copyNow();
    const run = await guest.startSlowly("--limit-rate", "512K");
    {
      await using _ = await stopLibvirtd();
      // By then everything is read, and libvirt is asked whether the job is still alive.
      await sleep(4000);
    }
    const ran = await finished(run);
    expectExit(ran, 0);
    const point = ofCalmLibvirt(ran.json() as BackupJson);
    expect(point).toMatchObject({ warnings: [], disks: [{ parent: full.id, dirtyBytes: 2 * MiB }, {}] });
    await guest.expectNothingLeft();
    const next = await guest.take();
    expect(next.disks[0]).toMatchObject({ mode: "incremental", dirtyBytes: 0 });
    await guest.expectPoint(next.id, copies);
  }, 480_000);

  it("is told of its job's end, too", async () => {
    await using guest = await BackupLab.start({ sizes: { vda: 64 * MiB, vdb: MiB } });
    await guest.lab.write("vda", 0, 64 * MiB, 0x11);
    const run = await guest.startSlowly("--connections", "1");
    {
      await using _ = await stopLibvirtd();
      await sleep(500);
    }
    // It asks twice a second whether libvirtd is back.
    await sleep(2000);
    await virsh("domjobabort", guest.lab.domain);
    const ended = performance.now();
    const ran = await finished(run);
    // The disk would take four minutes.
    expect(performance.now() - ended).toBeLessThan(120_000);
    expect([ran.code, ran.json()]).toMatchObject([4, { error: { code: "E_JOB_ENDED" } }]);
    await guest.expectNothingLeft();
  }, 480_000);
});

// Until libvirt hears of it, the exports are served on, but they are not frozen any more.
await describeWithLibvirt("a job that QEMU has ended while libvirtd is too busy to notice", () => {
  let guest: BackupLab;
  let attached: BackupLab;
  let killed: BackupLab;
  let other: Lab;
  // Each try has its own: the first ends the guest of one, and leaves points in the others.
  beforeEach(async () => {
    const sizes = { vda: 8 * MiB, vdb: MiB };
    [guest, attached, killed, other] = await startAll(
      BackupLab.start({ sizes }),
      BackupLab.start({ sizes }),
      BackupLab.start({ sizes: { ...sizes, vda: 64 * MiB } }),
      Lab.start({ sizes }),
    );
    for (const { lab } of [guest, attached]) await lab.write("vda", 0, 4 * MiB, 0x11);
    await killed.lab.write("vda", 0, 60 * MiB, 0x11);
  });
  afterEach(async () => {
    for (const each of [guest, attached, killed, other]) await each?.[Symbol.asyncDispose]();
  });

  async function expectRefused(of: BackupLab, run: Running): Promise<void> {
    const ran = await finished(run);
    const message = expect.stringContaining("although libvirt still shows it (");
    expect([ran.code, ran.json()]).toMatchObject([4, { error: { code: "E_JOB_ENDED", message } }]);
    expect(await of.points()).toEqual([]);
  }

  /** Kills a backup once its journal says that something is stored. */
  async function killLater(of: BackupLab, run: Running): Promise<void> {
    const home = join(of.repo, of.lab.domain);
    const journal = async (): Promise<number> => {
      const partial = (await of.beside()).find((name) => name.endsWith(".partial")) ?? "";
      return (await stat(join(home, partial, "vda.journal")).catch(() => ({ size: 0 }))).size;
    };
    await expect.poll(journal).toBeGreaterThan(1024);
    run.kill("SIGKILL");
    await run.ended;
    await rm(join(home, ".lock"), { recursive: true });
  }

  it("makes no point, nor does one that is attached to; what was killed is begun anew", async () => {
    await using _ = await attached.lab.beginBackup();
    await killLater(killed, startNbdpull(killed.arguments("--limit-rate", "4M")));
    const stall = await stallEvents(other);
    const args = ["attach", attached.lab.domain, "--to", attached.repo, "--json"];
    // QEMU 7.2.22 hangs if a job is ended while a client connects: a disk with an image has its one connection.
    const slowly = ["--limit-rate", "512K", "--request-size", "64K", "--connections", "1"];
    const attaching = startNbdpull([...args, ...slowly]);
    const run = await guest.startSlowly(...slowly);
    for (const disk of LAB_DISKS) {
      const stored = expect.stringMatching(new RegExp(`^\\.?${disk}\\.`));
      await expect.poll(() => attached.inPartial()).toContainEqual(stored);
    }
    for (const { lab } of [guest, attached, killed]) {
      await virsh("domjobabort", lab.domain);
      await lab.write("vda", 0, 4 * MiB, 0x77);
    }
    const anew = killed.take();
    await Promise.all([expectRefused(guest, run), expectRefused(attached, attaching)]);
    // It is cleared away once it is known to be no good.
    await expect.poll(() => killed.beside()).not.toContainEqual(expect.stringMatching(/\.partial$/));
    await stall[Symbol.asyncDispose]();
    await anew;
    expect(await anew).toMatchObject({
      resumed: null,
      warnings: [expect.stringContaining("QEMU has ended its job")],
    });
    for (const each of [guest, killed]) await each.expectNothingLeft();
    await killed.expectPoint((await anew).id, await killed.copyNow());
  }, 480_000);
});
