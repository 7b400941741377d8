import { statfsSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { anySignal } from "../../nbd/index.js";
import type { PreconditionError } from "../base/errors.js";
import type { ScratchSample } from "./judge-scratch.js";
import { ScratchPlace, type ScratchPolicy } from "./scratch-place.js";
import { type ScratchThresholds, watchThresholds } from "./scratch-thresholds.js";

/** Interval of the checks; each takes a few system calls. */
const LOOK_EVERY_MS = 250;
/** Bytes of the unit that `st_blocks` counts in. */
const STAT_BLOCK = 512;

export interface ScratchSettings extends ScratchPolicy {
  /** Paths of the scratch files, on this host. */
  readonly files: readonly string[];
}

export interface ScratchGuardOptions extends ScratchSettings {
  readonly signal?: AbortSignal | undefined;
  /** Scratch images whose room can't be seen from here: libvirt tells how they grow. */
  readonly thresholds?: ScratchThresholds | undefined;
  /**
   * Called once, after the signal of `work` has fired for lack of room. Closes all clients and ends the job.
   */
  readonly giveUp: () => Promise<void>;
}

/**
 * Runs `work` while the scratch files have room, and gives the job up before they fill the file system. With
 * QEMU's default settings the guest's write fails if its old content can't be stored.
 *
 * The job is given up at once, without waiting for `work`, which may be flushing images for minutes.
 *
 * @throws {PreconditionError} `E_SCRATCH_FULL`, once `work` and `giveUp` have ended
 * @throws what `work` throws
 */
export async function whileScratchLasts<T>(
  options: ScratchGuardOptions,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const { signal, giveUp, thresholds } = options;
  const short = new AbortController();
  const done = new AbortController();
  let givenUp: Promise<void> | undefined;
  const folders = foldersOf(options);
  const stop = (error: PreconditionError | undefined): void => {
    if (givenUp || !error) return;
    short.abort(error);
    // If this fails, the caller's cleanup after the error tries again.
    givenUp = giveUp().catch(() => undefined);
  };
  const look = (): void => {
    if (!givenUp) stop(firstError(folders));
  };
  look();
  const timer = setInterval(look, LOOK_EVERY_MS);
  const watching =
    thresholds && thresholds.rooms.length > 0 && watchThresholds(thresholds, options, done.signal, stop);
  try {
    return await work(anySignal(signal, short.signal));
  } catch (error) {
    throw short.signal.aborted ? short.signal.reason : error;
  } finally {
    clearInterval(timer);
    done.abort();
    await watching;
    await givenUp;
  }
}

/**
 * Checks before a job begins whether it would be given up at once.
 * @throws {PreconditionError} `E_SCRATCH_FULL`
 */
export function refuseShortScratch(settings: ScratchSettings): void {
  const error = firstError(foldersOf(settings));
  if (error) throw error;
}

function firstError(folders: readonly ScratchFolder[]): PreconditionError | undefined {
  return folders.map((folder) => folder.look()).find((error) => error !== undefined);
}

/** A folder with scratch files on this host. */
class ScratchFolder {
  readonly #path: string;
  readonly #files: readonly string[];
  readonly #place: ScratchPlace;

  constructor(path: string, files: readonly string[], policy: ScratchPolicy) {
    this.#path = path;
    this.#files = files;
    this.#place = new ScratchPlace(`the scratch files of ${policy.domain} in ${path}`, path, policy);
  }

  /** Warns at most once; returns the error if the room is short. */
  look(): PreconditionError | undefined {
    const sample = sampleOf(this.#path, this.#files);
    return sample && this.#place.judge(sample).error;
  }
}

function foldersOf(options: ScratchSettings): ScratchFolder[] {
  const paths = [...new Set(options.files.map((file) => dirname(file)))];
  return paths.map((path) => {
    const files = options.files.filter((file) => dirname(file) === path);
    return new ScratchFolder(path, files, options);
  });
}

/**
 * Current sizes of the files; undefined if they can't be read, for example because the job has ended.
 *
 * Uses synchronous calls, because all threads of Node's pool may be busy flushing files for minutes.
 */
function sampleOf(folder: string, files: readonly string[]): ScratchSample | undefined {
  try {
    const { bavail, bsize } = statfsSync(folder);
    let [used, left] = [0, bavail * bsize];
    for (const file of files) {
      const stat = statSync(file, { throwIfNoEntry: false });
      if (!stat) continue;
      const allocated = stat.blocks * STAT_BLOCK;
      used += Math.min(allocated, stat.size);
      // XFS preallocates gigabytes for a growing file; no other file can use them.
      left += Math.max(0, allocated - stat.size);
    }
    return { time: performance.now(), used, left };
  } catch {
    return undefined;
  }
}
