import { type BackupError, explained, messageOf, PreconditionError } from "../base/errors.js";
import { checkChains } from "../chain/check-chains.js";
import { pull } from "../pull/pull.js";
import { withRestorable } from "../repository/points-without-damage.js";
import type { BlockTarget } from "./block-target.js";
import type { RestoredDisk } from "./restore.js";
import { RestoreSource, type RestoreSourceOptions } from "./restore-source.js";
import { storeWindow } from "./store-window.js";
import { TargetWriter } from "./target-writer.js";

export interface RestoreOverOptions extends Omit<RestoreSourceOptions, "preferredBlock"> {
  /** Belongs to the caller, who closes it. */
  readonly target: BlockTarget;
  /** Flush to stable storage before returning. */
  readonly sync: boolean;
}

/**
 * Sizes in bytes. `path` is the target's name, and `storedBytes` the data that was written, without zeroes.
 */
export interface OverwrittenDisk extends RestoredDisk {
  /** If the target is larger than the disk, its bytes behind the disk stay as they are. */
  readonly targetSize: number;
}

/**
 * Writes a disk of a point over the content of a block device or an NBD export. Unlike a file, the target has
 * no temporary name: a failure after the first write leaves it half-written, and the error says so.
 *
 * Manifests, tables and digest files are checked before anything is written. The data is compared with its
 * digests when it is read.
 *
 * @throws {PreconditionError} `E_TARGET_TOO_SMALL`: the target is smaller than the disk; nothing was written
 * @throws {DamageError} a layer is missing or damaged. The message names disk, point and guest offset, and
 *   the points that can be restored without it
 * @throws {BackupError} the target can't be written, with the code of the cause
 */
export async function restoreOver(options: RestoreOverOptions): Promise<OverwrittenDisk> {
  const { repository, domain, point, disk, target, signal } = options;
  refuseSmall(options);
  try {
    await checkChains(repository, domain, point, [disk], signal);
    return await overwrite(options);
  } catch (error) {
    const told = await withRestorable(error, repository, domain, [disk]);
    throw target.touched ? halfWritten(told, target.name) : told;
  }
}

function refuseSmall({ point, disk: name, target }: RestoreOverOptions): void {
  const disk = point.disks.find((candidate) => candidate.name === name);
  if (!disk || disk.virtualSize <= target.writable) return;
  const message = `${target.name} has ${target.writable} bytes that can be written, and disk ${name} of point ${point.id} needs ${disk.virtualSize}: nothing was written. Name a larger target`;
  const details = { target: target.name, targetSize: target.size, virtualSize: disk.virtualSize };
  throw new PreconditionError("E_TARGET_TOO_SMALL", message, { details });
}

async function overwrite(options: RestoreOverOptions): Promise<OverwrittenDisk> {
  const started = performance.now();
  const { target, disk } = options;
  await using source = await RestoreSource.open({ ...options, ...howToRead(options) });
  const { geometry, segmentBytes, chain, assurance } = source;
  const bufferBytes = options.window?.inFlight;
  await using into = new TargetWriter({ target, geometry, segmentBytes, bufferBytes });
  await pull({ ...source.begin(), into });
  source.finish();
  if (options.sync) await target.flush(options.signal);
  return {
    disk,
    path: target.name,
    format: "raw",
    virtualSize: geometry.virtualSize,
    targetSize: target.size,
    readBytes: source.readBytes,
    storedBytes: into.writtenBytes,
    chain,
    ...assurance,
    seconds: (performance.now() - started) / 1000,
  };
}

/**
 * Of an object store more is read at a time. Half as much as for files, since as much waits to be written.
 */
function howToRead(options: RestoreOverOptions): Pick<RestoreSourceOptions, "window" | "preferredBlock"> {
  const { preferredBlock } = options.target;
  if (!options.repository.isInStore) return { preferredBlock };
  const fromStore = storeWindow(2, options);
  return { ...fromStore, preferredBlock: Math.max(fromStore.preferredBlock, preferredBlock ?? 0) };
}

/** The error, with the state of the target in its message and details. */
function halfWritten(error: unknown, target: string): BackupError {
  const message = `${messageOf(error)}. ${target} is half-written: it holds neither its old content nor the point. Restore to it again before anything uses it`;
  return explained(error, message, { target, halfWritten: true });
}
