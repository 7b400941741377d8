import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { Libvirt } from "../../src/backup/libvirt/libvirt.js";
import { RateLimit } from "../../src/backup/pull/rate-limit.js";
import { attach } from "../../src/backup/take/attach.js";
import { backup } from "../../src/backup/take/backup.js";
import { withLivingDisks } from "../../src/backup/take/living-disks.js";
import type { TakeSettings } from "../../src/backup/take/take-options.js";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { LibvirtInFront } from "../support/libvirt-in-front.js";
import { describeWithLibvirt, LAB_DISKS, virsh } from "../support/libvirt-lab.js";
import { finished, nbdpull, startNbdpull } from "../support/nbdpull.js";
import { qemuImg } from "../support/qemu-nbd.js";

const MiB = 1024 * 1024;

/** QEMU 7.2 may survive everything before its firmware has given up booting, which takes half a second. */
const FIRMWARE_MS = 2000;

/** vda gets an iothread of its own, vdb that of its controller. */
function withIothreads(xml: string): string {
  return xml
    .replace("<vcpu", "<iothreads>2</iothreads><vcpu")
    .replace(/(<driver name='qemu' type='qcow2'[^/]*)(\/>\s*<source file='[^']*vda)/, "$1 iothread='1'$2")
    .replace(/<target dev='vdb' bus='virtio'\/>\s*<address[^>]*>/, "<target dev='vdb' bus='scsi'/>")
    .replace(
      "</devices>",
      "<controller type='scsi' index='0' model='virtio-scsi'><driver iothread='2'/></controller></devices>",
    );
}

/** What waits for an absent libvirt so many times shorter than it does otherwise. */
const HASTE = 40;
/** Longer than most things wait for it then, and shorter than what the life of the guest depends on. */
const AWAY_MS = 6000;

/** A libvirt whose patience is so much shorter, also where it is handed on. */
function hasty(libvirt: Libvirt): Libvirt {
  const withSignal = libvirt.withSignal.bind(libvirt);
  const withPatience = libvirt.withPatience.bind(libvirt);
  return Object.assign(libvirt, {
    withSignal: (signal: AbortSignal | undefined) => hasty(withSignal(signal)),
    withPatience: (ms: number) => hasty(withPatience(ms / HASTE)),
  });
}

async function started(guest: BackupLab): Promise<() => Promise<void>> {
  const { lab } = guest;
  await lab.powerOff();
  await lab.redefine(withIothreads);
  await lab.powerOn();
  const id = await virsh("domid", lab.domain);
  await sleep(FIRMWARE_MS);
  return async () => {
    await sleep(200);
    // libvirt can take a dead QEMU for running for a while, but not without an answer from it.
    const answer = await virsh("qemu-monitor-command", lab.domain, "--hmp", "info status");
    expect([await virsh("domid", lab.domain), answer]).toEqual([id, expect.stringContaining("running")]);
  };
}

await describeWithLibvirt("a guest with iothreads, whose QEMU 7.2 dies when a client leaves its job", () => {
  it("survives backups, one that is interrupted, doctor, and attach", async () => {
    await using guest = await BackupLab.start();
    const { lab } = guest;
    const expectAlive = await started(guest);
    await lab.write("vda", 0, 30 * MiB, 0x11);

    const isFragile = (await virsh("version")).includes("QEMU 7.2.");
    const warning = isFragile ? [expect.stringContaining("vda, vdb: QEMU 7.2 dies")] : [];
    const full = await guest.take();
    await expectAlive();
    expect(full.warnings).toEqual(warning);
    const looked = await nbdpull("doctor", lab.domain, "--scratch", guest.scratch, "--json");
    expect(JSON.stringify(looked.json())).toContain(isFragile ? "QEMU 7.2 dies" : "no disk for which");
    await expectAlive();

    await lab.write("vda", 10 * MiB, 10 * MiB, 0x22);
    const interrupted = await guest.startSlowly();
    interrupted.kill("SIGINT");
    expectExit(await finished(interrupted), 130);
    await expectAlive();
    await guest.expectNothingLeft();

    // Without room in the repository the backup fails while it is connected.
    await writeFile(join(guest.folder, "in-the-way"), "");
    const to = join(guest.folder, "in-the-way", "repo");
    const job = await lab.beginBackup();
    const plain = ["attach", lab.domain, "--to", guest.repo, "--json"];
    if (isFragile) {
      const refused = await nbdpull(...plain);
      expectExit(refused, 4);
      expect(refused.json()).toMatchObject({ error: { code: "E_FRAGILE_GUEST", disks: [...LAB_DISKS] } });
      await expectAlive();
    }
    expect((await nbdpull("attach", lab.domain, "--to", to, "--end-job")).code).not.toBe(0);
    await expectAlive();
    await job[Symbol.asyncDispose]();
    await lab.beginBackup();
    expectExit(await nbdpull(...plain, "--end-job"), 0);
    await expectAlive();

    const last = await guest.take();
    expect(last.disks[0]).toMatchObject({ parent: full.id, dirtyBytes: 10 * MiB });
    await expectAlive();

    // Nothing keeps the connections of a backup that is killed, and its guest may die of that. What it has
    // left is gone on with where the job lives, and is cleared away where it doesn't.
    const killed = startNbdpull(guest.arguments("--level", "full", "--limit-rate", "2M"));
    await expect.poll(() => guest.inPartial()).toContain("vda.journal");
    killed.kill("SIGKILL");
    await killed.ended;
    await rm(join(guest.repo, lab.domain, ".lock"), { recursive: true });
    await sleep(FIRMWARE_MS);
    // See above: libvirt may not know yet.
    const isAlive = await virsh("qemu-monitor-command", lab.domain, "--hmp", "info status").then(
      () => true,
      () => false,
    );
    if (!isAlive) {
      await expect.poll(() => virsh("domstate", lab.domain)).toContain("shut off");
      await lab.powerOn();
    }
    const after = await guest.take("--level", "full");
    expect(after).toMatchObject({ resumed: isAlive ? { times: 1 } : null });
    await guest.expectNothingLeft();
    await lab.powerOff();
    const target = join(guest.folder, "restored");
    expectExit(
      await nbdpull("restore", guest.repo, lab.domain, "--at", after.id, "--to", target, "--format", "raw"),
      0,
    );
    for (const disk of LAB_DISKS) {
      await qemuImg("compare", "-f", "raw", "-F", "qcow2", join(target, `${disk}.raw`), lab.image(disk));
    }
  });

  it("survives that libvirt is away when the job has to be ended, whoever has begun it", async () => {
    await using guest = await BackupLab.start();
    const { lab } = guest;
    const expectAlive = await started(guest);
    await lab.write("vda", 0, 30 * MiB, 0x11);
    using front = new LibvirtInFront(guest.folder);
    const connect = front.env()["LIBVIRT_DEFAULT_URI"];
    const where = { domain: lab.domain, repositoryPath: guest.repo, scratchParent: guest.scratch };
    const leave = (): void => {
      setTimeout(front.leave(), AWAY_MS).unref();
    };
    /** A job that is interrupted in its middle, while libvirt is away. */
    const interrupted = async (
      take: (settings: TakeSettings & { libvirt: Libvirt }) => Promise<unknown>,
    ): Promise<void> => {
      await using libvirt = hasty(new Libvirt({ connect }));
      const stop = new AbortController();
      const slowly = { rateLimit: new RateLimit(MiB), window: { requestSize: 65_536 } };
      const made = { format: "qcow2", digests: undefined, sync: false, tool: "test", ...slowly } as const;
      const taking = take({ ...made, connect: {}, libvirt, signal: stop.signal });
      const isStored = expect.stringMatching(/^\.?vda\./);
      // What fails before fails the test at once.
      await Promise.race([taking, expect.poll(() => guest.inPartial()).toContainEqual(isStored)]);
      leave();
      stop.abort(new Error("enough"));
      await expect(taking).rejects.toThrow("enough");
      await expectAlive();
    };
    await interrupted(({ libvirt, ...settings }) =>
      backup({ ...settings, ...where, libvirt, level: "full", disks: { include: [], exclude: [] } }),
    );
    await guest.expectNothingLeft();
    await lab.beginBackup();
    await interrupted(({ libvirt, ...settings }) =>
      attach({
        ...settings,
        ...where,
        source: { kind: "libvirt", libvirt, domain: lab.domain },
        endJob: true,
      }),
    );
    await guest.expectNothingLeft();
    await using libvirt = hasty(new Libvirt({ connect }));
    // As `repair --from-domain` does, and `verify --live`.
    const read = await withLivingDisks({ ...where, libvirt }, async (disks) => {
      leave();
      return [...disks.keys()];
    });
    expect(read).toEqual([...LAB_DISKS]);
    await expectAlive();
    await guest.expectNothingLeft();
  }, 480_000);
});
