/** Plans how each disk of a guest is taken, and estimates how many bytes that reads. */

import { hasCode, PreconditionError } from "../base/errors.js";
import { SoundBases } from "../chain/sound-bases.js";
import type { ImageFormat } from "../image/image.js";
import { readCheckpoints } from "../libvirt/checkpoints.js";
import { parseCheckpoint } from "../libvirt/documents/checkpoint-xml.js";
import type { DomainDefinition } from "../libvirt/documents/domain-xml.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import { domainFolder } from "../repository/domain-folder.js";
import type { Manifest } from "../repository/manifest.js";
import { pointsOf } from "../repository/point-owners.js";
import type { Guest } from "./guest.js";
import type { Level } from "./levels.js";
import { bitmapOf, type DiskPlan, type GuestDisk, type History, planDisk } from "./plan-disk.js";

interface GuestPlanOptions {
  readonly level: Level;
  readonly format: ImageFormat;
  /** Bitmaps that can't be used, by the key that `bitmapOf` gives, and why. */
  readonly broken: ReadonlyMap<string, string>;
  /** What is known to be whole, as `SoundBases` has it. What is checked now is added. */
  readonly proven?: Set<string> | undefined;
  /** Judge the chain of each disk alone, since no point is made: damage of other disks does not matter. */
  readonly disksAlone?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onWarning?: ((message: string) => void) | undefined;
}

/** Plans every disk. Without a repository there are no points, so every disk is full. */
export async function planGuest(
  { libvirt, domain, repository }: Pick<Guest, "libvirt" | "domain"> & Partial<Pick<Guest, "repository">>,
  disks: readonly GuestDisk[],
  options: GuestPlanOptions,
): Promise<DiskPlan[]> {
  const { broken, proven, disksAlone = false, signal, onWarning } = options;
  const none = { domainUuid: domain.uuid, points: [], checkpoints: [], broken, prove: async () => undefined };
  const planAll = async (history: History): Promise<DiskPlan[]> => {
    const plans: DiskPlan[] = [];
    for (const disk of disks) plans.push(await planDisk(disk, options, history));
    return plans;
  };
  if (!repository) return await planAll(none);
  const folder = await domainFolder(repository, domain);
  const read = async (): Promise<DiskPlan[]> => {
    const points = await repository.points(folder, ({ message }) => onWarning?.(message));
    const bases = new SoundBases(repository, folder, { points, proven });
    const history: History = {
      ...none,
      points: pointsOf(points, domain.uuid),
      checkpoints: await readCheckpoints(libvirt, domain),
      prove: async (point, disk) => {
        const elsewhere = await bases.prove(point, disk);
        return disksAlone ? undefined : elsewhere;
      },
    };
    for (;;) {
      const known = bases.unsound;
      const plans = await planAll(history);
      if (bases.unsound === known) return plans;
    }
  };
  return await repository.reading(folder, read, signal);
}

/**
 * Throws if the user asked for an increment and every disk would be a full copy.
 * @throws {PreconditionError} `E_NO_BASE`
 */
export function refuseNoBase(domain: string, plans: readonly DiskPlan[], level: Level): void {
  if (level !== "incremental" && level !== "differential") return;
  if (plans.some(({ base }) => base)) return;
  const reasons = plans.map(({ name, reason = "there is no point yet" }) => `${name}: ${reason}`).join("; ");
  throw new PreconditionError(
    "E_NO_BASE",
    `${domain} has nothing that an ${level} backup could start from (${reasons}). Take a full one first: --level full, or auto`,
    { details: { domain } },
  );
}

/** The level of the point that was made, which may differ from the level that was asked for. */
export function levelOf(manifest: Manifest, asked: Level): Exclude<Level, "auto"> {
  if (asked === "copy") return "copy";
  if (manifest.level === "full") return "full";
  return asked === "differential" ? "differential" : "incremental";
}

/** The reason for a bitmap that libvirt can't use. libvirt gives no details. */
export const LOST =
  "is lost or broken (QEMU writes it only when it ends: was it killed? Or was the disk replaced?)";

/** What is known of a backup before it begins. */
export interface Forecast {
  readonly plans: readonly DiskPlan[];
  /** Bitmaps that can't be used: those from the options, and those found since. */
  readonly broken: ReadonlyMap<string, string>;
  /** What is known to be whole: what the options say, and what was checked since. */
  readonly proven: Set<string>;
  /**
   * Approximate bytes that will be read of each disk: what changed since its base, or what its image
   * occupies. This includes zeroes and discarded areas, which are not stored.
   */
  readonly sizes: ReadonlyMap<string, number>;
}

/** Like `planGuest`, for a running domain. Does not use bitmaps that libvirt finds broken. */
export async function forecast(
  guest: Pick<Guest, "libvirt" | "domain"> & Partial<Pick<Guest, "repository">>,
  disks: readonly GuestDisk[],
  options: GuestPlanOptions,
): Promise<Forecast> {
  const { libvirt, domain } = guest;
  const broken = new Map(options.broken);
  const proven = new Set(options.proven);
  const changed = new Map<string, ReadonlyMap<string, number>>();
  for (;;) {
    const plans = await planGuest(guest, disks, { ...options, broken, proven });
    const known = broken.size;
    const sizes = new Map<string, number>();
    for (const { name, base } of plans) {
      if (!base) {
        sizes.set(name, await libvirt.allocatedBytes(domain, name));
        continue;
      }
      const ofBase = changed.get(base.checkpoint) ?? (await changedSince(libvirt, domain, base.checkpoint));
      changed.set(base.checkpoint, ofBase);
      const size = ofBase.get(name);
      if (size === undefined) broken.set(bitmapOf(name, base.checkpoint), LOST);
      else sizes.set(name, size);
    }
    if (broken.size === known) return { plans, broken, proven, sizes };
  }
}

/** Bytes that changed since a checkpoint, for each disk whose bitmap can be used. */
export async function changedSince(
  libvirt: Libvirt,
  domain: DomainDefinition,
  checkpoint: string,
): Promise<ReadonlyMap<string, number>> {
  try {
    const { disks } = parseCheckpoint(await libvirt.checkpointXml(domain, checkpoint, { sizes: true }));
    return new Map(disks.flatMap(({ name, size }) => (size === undefined ? [] : [[name, size] as const])));
  } catch (error) {
    // The checkpoint was deleted after it was listed.
    if (hasCode(error, "E_NO_CHECKPOINT")) return new Map();
    throw error;
  }
}
