import { DamageError } from "../base/errors.js";
import type { ImageFormat } from "../image/image.js";
import type { Checkpoint } from "../libvirt/documents/checkpoint-xml.js";
import { diskOf, isSame, type Manifest } from "../repository/manifest.js";
import type { Level } from "./levels.js";

/** A disk that is backed up, as the domain has it now. */
export interface GuestDisk {
  readonly name: string;
  /** `qcow2`, `raw`, … */
  readonly format: string;
  /** Bytes that the guest sees. */
  readonly size: number;
  /** The version of a qcow2 image; undefined: not known, or another format. */
  readonly version?: number | undefined;
  /** The image's path on the hypervisor, if it has one. */
  readonly path?: string | undefined;
}

/** How a disk is taken. */
export interface DiskPlan {
  readonly name: string;
  /** Whether the new checkpoint gets a bitmap of the disk. */
  readonly bitmap: boolean;
  /** The point that the increment is based on, and that point's checkpoint; undefined: a full copy. */
  readonly base?: { readonly checkpoint: string; readonly parent: Manifest } | undefined;
  /** Why the disk is full although an increment was wanted. */
  readonly reason?: string | undefined;
}

/** The points and checkpoints that an increment could be based on. */
export interface History {
  readonly domainUuid: string;
  /** The repository's points of the domain, oldest first. */
  readonly points: readonly Manifest[];
  /** All checkpoints that libvirt has of the domain. */
  readonly checkpoints: readonly Checkpoint[];
  /** Bitmaps that can't be used, by the key that `bitmapOf` gives, and why. */
  readonly broken: ReadonlyMap<string, string>;
  /**
   * Checks that the disk's chain is whole.
   * @returns why the point is no base all the same; undefined: it is one
   * @throws {DamageError} the disk can't be restored to that point
   */
  readonly prove: (point: Manifest, disk: string) => Promise<string | undefined>;
}

/** Plans one disk. Its base is the newest point whose checkpoint still has a usable bitmap of the disk. */
export async function planDisk(
  disk: GuestDisk,
  options: { readonly level: Level; readonly format: ImageFormat },
  history: History,
): Promise<DiskPlan> {
  const { name } = disk;
  const { level } = options;
  if (level === "copy") return { name, bitmap: false };
  const obstacle = bitmapObstacle(disk);
  const bitmap = obstacle === undefined;
  if (level === "full") return { name, bitmap };
  if (!bitmap) return { name, bitmap, reason: obstacle };
  let reason: string | undefined;
  for (const parent of candidates(name, level, history)) {
    const why = await obstacleOf(disk, parent, options.format, history);
    const checkpoint = parent.checkpoint?.name ?? "";
    if (why === undefined) return { name, bitmap, base: { checkpoint, parent } };
    reason ??= why;
    if (sizeOf(parent, name) !== disk.size) break;
  }
  if (reason === undefined && history.points.length > 0) reason = "no point with a checkpoint has this disk";
  return { name, bitmap, reason };
}

/** The key of a checkpoint's bitmap in `History.broken`. */
export function bitmapOf(disk: string, checkpoint: string): string {
  return `${disk} ${checkpoint}`;
}

/** Versions of qcow2 before this one have no bitmaps. */
const VERSION_WITH_BITMAPS = 3;

/**
 * Why the disk's image can't keep a dirty bitmap, so that every backup of it is full; undefined if it can.
 */
export function bitmapObstacle({
  format,
  version = VERSION_WITH_BITMAPS,
}: Pick<GuestDisk, "format" | "version">): string | undefined {
  if (format !== "qcow2") return `${format} images can't keep a dirty bitmap`;
  if (version >= VERSION_WITH_BITMAPS) return undefined;
  return `qcow2 images of version ${version} can't keep a dirty bitmap; while the domain is off, \`qemu-img amend -f qcow2 -o compat=v3\` makes them version 3`;
}

/** Points that the disk could be an increment on, best first. */
function candidates(name: string, level: Level, { points }: History): Manifest[] {
  const ofDisk = points.filter((point) => point.checkpoint && diskOf(point, name)).reverse();
  return level === "differential"
    ? ofDisk.filter((point) => diskOf(point, name)?.mode === "full").slice(0, 1)
    : ofDisk;
}

/** Why no increment can be based on that point; undefined if one can. */
async function obstacleOf(
  disk: GuestDisk,
  parent: Manifest,
  format: ImageFormat,
  history: History,
): Promise<string | undefined> {
  const { name } = disk;
  const before = diskOf(parent, name);
  const base = parent.checkpoint;
  if (!before || !base) return `point ${parent.id} has no checkpoint of it`;
  if (!isSame(parent.domain.uuid, history.domainUuid)) {
    return `point ${parent.id} is of another domain of this name, by its UUID`;
  }
  if (before.virtualSize !== disk.size) {
    return `the disk was resized from ${before.virtualSize} to ${disk.size} bytes`;
  }
  const checkpoint = history.checkpoints.find((each) => each.name === base.name);
  if (!checkpoint) return `checkpoint ${base.name} of point ${parent.id} is gone`;
  if (!isSame(base.creationTime, checkpoint.creationTime)) {
    return `checkpoint ${base.name} was made anew since point ${parent.id}`;
  }
  if (checkpoint.disks.find((each) => each.name === name)?.bitmap === undefined) {
    return `checkpoint ${base.name} has no bitmap of it`;
  }
  const broken = history.broken.get(bitmapOf(name, base.name));
  if (broken !== undefined) return `its bitmap of checkpoint ${base.name} ${broken}`;
  if (format === "qcow2" && before.format === "raw" && before.mode === "incremental") {
    return `point ${parent.id} is a raw increment, which no qcow2 image can stand on`;
  }
  try {
    return await history.prove(parent, name);
  } catch (error) {
    if (error instanceof DamageError)
      return `an increment on ${parent.id} could not be restored: ${error.message}`;
    throw error;
  }
}

function sizeOf(point: Manifest, name: string): number | undefined {
  return diskOf(point, name)?.virtualSize;
}
