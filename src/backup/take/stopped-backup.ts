/**
 * The backup of a domain that is off. libvirt can neither run a job nor make a checkpoint for it. The images
 * don't change, and each holds the bitmaps of its checkpoints:
 *
 *     checkpoint c1 --- guest writes --- off         qemu-nbd serves the images, with bitmap c1
 *          |                              |
 *     point 1 (c1) <----------------- this point     on point 1, with no checkpoint of its own
 *          ^---------------------------------------- the next one, whether the domain runs by then or not
 */

import { anySignal } from "../../nbd/index.js";
import { messageOf, PreconditionError } from "../base/errors.js";
import { closeAll, together } from "../base/in-parallel.js";
import { claimFolder, clearFolder } from "../guest/claim.js";
import { toolUsers } from "../guest/confined-tool.js";
import { type Guest, keyOf } from "../guest/guest.js";
import { ImageUse } from "../guest/image-use.js";
import { JobFolder } from "../guest/job-folder.js";
import type { Level } from "../guest/levels.js";
import { bitmapOf, type DiskPlan } from "../guest/plan-disk.js";
import { levelOf, planGuest, refuseNoBase } from "../guest/plan-guest.js";
import type { DiskFile } from "../guest/qemu-img.js";
import type { ImageServer } from "../guest/qemu-nbd.js";
import { StoppedDisk } from "../guest/stopped-disk.js";
import { refuseRemote, refuseUnfit, unfit } from "../guest/unfit-while-off.js";
import { volumeOf } from "../guest/volume-of.js";
import { readCheckpoints } from "../libvirt/checkpoints.js";
import { type DiskChoice, disksToBackUp } from "../libvirt/choose-disks.js";
import { parseHostSecurity } from "../libvirt/documents/capabilities-xml.js";
import type { DomainDefinition, DomainDisk, QemuUser } from "../libvirt/documents/domain-xml.js";
import { statedLinks } from "../libvirt/documents/stated-chain.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import { StartWatch } from "../libvirt/start-watch.js";
import { Repository } from "../repository/repository.js";
import type { PointDisk, TakeSettings } from "./take-options.js";
import { type TakenPoint, takePoint } from "./take-point.js";

interface StoppedBackupOptions extends TakeSettings {
  readonly libvirt: Libvirt;
  readonly repositoryPath: string;
  readonly trustRepository?: boolean | undefined;
  readonly level: Level;
  readonly disks: DiskChoice;
  readonly scratchParent: string;
}

/** A disk of the domain, and its images. */
interface FoundDisk {
  readonly name: string;
  readonly format: string;
  readonly found: StoppedDisk;
}

/** How a disk is taken; `counted` is the bitmap of its image that has the changes since the base. */
interface StoppedPlan extends DiskPlan {
  readonly counted?: string | undefined;
}

/**
 * Backs up a domain that is off. While its image files are read, QEMU's locks keep the domain from being
 * started. On block devices, and on a file system without locks, a start is noticed before anything is
 * committed.
 *
 * @param domain parsed from `definition`, which libvirt gave just now
 * @throws {PreconditionError} another backup runs, a disk can't be read or is used by others, the domain was
 *   started, no base for an increment
 * @throws as `takePoint` does
 */
export async function backUpStopped(
  domain: DomainDefinition,
  definition: string,
  options: StoppedBackupOptions,
): Promise<TakenPoint & { readonly level: Exclude<Level, "auto"> }> {
  const { libvirt, signal } = options;
  const chosen = disksToBackUp(domain, options.disks);
  for (const disk of chosen) refuseUnfit(domain, disk);
  await refuseRemote(libvirt, domain);
  const images = await together(
    ...chosen.map(async (disk) => ({ name: disk.target, image: await imageOf(libvirt, domain, disk) })),
  );
  const repository = await Repository.openOrCreate(options.repositoryPath, {
    trusted: options.trustRepository,
    signal,
    onWarning: options.onWarning,
  });
  const guest: Guest = { libvirt, domain, repository, ssh: undefined };
  const folder = await JobFolder.find(options.scratchParent, keyOf(guest), undefined);
  await claimFolder(guest, folder, options);
  const disks: FoundDisk[] = [];
  try {
    const users = await toolUsers(domain.qemuUser ?? (await hostsUser(libvirt)));
    if (users) await folder.lend(users.group);
    let sockets = 0;
    const newSocket = (): string => {
      sockets += 1;
      return folder.serverSocket(sockets);
    };
    for (const { name, image } of images) {
      const found = await StoppedDisk.open(image, statedLinks(definition, name), {
        users,
        newSocket,
        signal,
      });
      disks.push({ name, format: image.format, found });
    }
    const plans = await planStopped(guest, disks, options);
    refuseNoBase(domain.name, plans, options.level);
    const taken = await serveAndTake(guest, definition, { disks, plans }, options);
    return { ...taken, level: levelOf(taken.manifest, options.level) };
  } finally {
    await closeAll(...disks.map(({ found }) => found));
    await clear({ ...guest, libvirt: libvirt.withSignal(undefined) }, folder, options);
  }
}

/** The user that libvirt starts QEMU as, unless a domain's definition names another. */
async function hostsUser(libvirt: Libvirt): Promise<QemuUser | undefined> {
  return parseHostSecurity(await libvirt.capabilities()).qemuUser;
}

/** @throws {PreconditionError} `E_NO_VOLUME`; `E_DISK_UNFIT`: it is a volume on a network */
async function imageOf(libvirt: Libvirt, domain: DomainDefinition, disk: DomainDisk): Promise<DiskFile> {
  const { target, type, source = "", format = "raw" } = disk;
  const volume = await volumeOf(libvirt, domain, disk);
  const { kind, path } = volume ?? { kind: type, path: source };
  if (kind === "file" || kind === "block") return { path, kind, format };
  throw unfit(domain, target, `is a volume of kind ${kind}`);
}

async function planStopped(
  guest: Guest,
  disks: readonly FoundDisk[],
  options: StoppedBackupOptions,
): Promise<StoppedPlan[]> {
  const checkpoints = await readCheckpoints(guest.libvirt, guest.domain);
  const bitmapIn = (checkpoint: string, disk: string): string | undefined =>
    checkpoints.find(({ name }) => name === checkpoint)?.disks.find(({ name }) => name === disk)?.bitmap;
  const broken = new Map<string, string>();
  for (const { name: disk, found } of disks) {
    for (const { name: checkpoint } of checkpoints) {
      const bitmap = bitmapIn(checkpoint, disk);
      const obstacle = bitmap === undefined ? undefined : found.bitmapObstacle(bitmap);
      if (obstacle !== undefined) broken.set(bitmapOf(disk, checkpoint), obstacle);
    }
  }
  const guestDisks = disks.map(({ name, format, found }) => ({
    name,
    format,
    size: found.size,
    version: found.version,
  }));
  const plans = await planGuest(guest, guestDisks, { ...options, broken });
  return plans.map((plan) => ({ ...plan, counted: plan.base && bitmapIn(plan.base.checkpoint, plan.name) }));
}

async function serveAndTake(
  { libvirt, domain, repository }: Guest,
  definition: string,
  wanted: {
    readonly disks: readonly FoundDisk[];
    readonly plans: readonly StoppedPlan[];
  },
  options: StoppedBackupOptions,
): Promise<TakenPoint> {
  const servers: ImageServer[] = [];
  const images = await ImageUse.of(
    libvirt,
    wanted.disks.flatMap(({ found }) => found.paths),
  );
  // QEMU's locks keep a domain on image files from being started.
  const isOnDevices = images.devices.length > 0;
  await using watch = isOnDevices ? await StartWatch.of(libvirt, domain) : undefined;
  const started = watch ? [watch.started] : [];
  const signal = anySignal(options.signal, ...started);
  const silent = await images.uncounted();
  for (const path of silent) options.onWarning?.(uncounted(path));
  try {
    const disks: PointDisk[] = [];
    for (const { name, found } of wanted.disks) {
      const { base, counted: bitmap, reason } = wanted.plans.find((plan) => plan.name === name) ?? {};
      const server = await found.serve({ name, bitmap });
      servers.push(server);
      const increment = base && bitmap !== undefined ? { bitmap, parent: base.parent } : undefined;
      disks.push({ name, address: server.address, increment, reason });
    }
    const state = await images.state();
    const assertStill = async (): Promise<void> => {
      for (const server of [...servers, ...wanted.disks.map(({ found }) => found)])
        await server.assertAlive(signal);
      if ((await libvirt.domainXml(domain)) !== definition) throw changed(domain);
      await images.refuseOthers();
      if ((await images.state()) !== state || watch?.started.aborted) throw changed(domain);
      // What the guest wrote after a start that nobody heard of shows in the counts, but here there are none.
      if (silent.length > 0 && watch?.isDeaf) throw unheard(domain, silent);
    };
    // The domain may have run between libvirt's answer and the moment when QEMU took its locks.
    await assertStill();
    const saved = (await libvirt.hasManagedSave(domain)) ? [MEMORY] : [];
    // The XML of a domain that is off doesn't say which user owns its NVRAM.
    const qemuUser = await hostsUser(libvirt);
    return await takePoint({
      ...options,
      signal,
      connect: {},
      repository,
      domain: { name: domain.name, uuid: domain.uuid },
      definition: { xml: definition, host: undefined, notKept: saved, qemuUid: qemuUser?.uid },
      disks,
      checkpoint: null,
      confirm: assertStill,
    });
  } catch (error) {
    if (watch?.started.aborted && !options.signal?.aborted) throw changed(domain);
    throw error;
  } finally {
    await closeAll(...servers);
  }
}

function changed({ name }: DomainDefinition): PreconditionError {
  const message = `${name} was off when the backup began, and was started or changed since, or its disks were: nothing was stored. Begin it again`;
  return new PreconditionError("E_DOMAIN_CHANGED", message, { details: { domain: name } });
}

function unheard({ name }: DomainDefinition, silent: readonly string[]): PreconditionError {
  const message = `the connection to libvirt was lost while ${name}, which is off, was read, so a start of it in between could not be heard, nor seen by what was written, since the kernel doesn't count that for ${silent.join(", ")} (queue/iostats is 0): nothing was stored. Begin it again`;
  return new PreconditionError("E_DOMAIN_CHANGED", message, { details: { domain: name } });
}

function uncounted(path: string): string {
  return `the kernel doesn't count what is written to ${path} (queue/iostats is 0), so a short use of it by others while it is read would not be noticed`;
}

const MEMORY = {
  what: "memory of its managed save",
  reason: "restored, its disks are as after a power cut",
};

/**
 * Called after all clients are closed, whether the backup succeeded or not. The next backup removes what this
 * can't.
 */
async function clear(guest: Guest, folder: JobFolder, options: StoppedBackupOptions): Promise<void> {
  try {
    await clearFolder(guest, folder);
  } catch (error) {
    options.onWarning?.(`not everything was cleared away, the next backup will do it: ${messageOf(error)}`);
  }
}
