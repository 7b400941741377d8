import { statfsSync, statSync } from "node:fs";
import { dirname } from "node:path";
import prettyBytes from "pretty-bytes";
import { PreconditionError } from "../base/errors.js";
import { judgeScratch, recentSamples, type ScratchSample, type ScratchVerdict } from "./scratch-space.js";

/** Interval of the checks; each takes a few system calls. */
const LOOK_EVERY_MS = 250;
/** Bytes of the unit that `st_blocks` counts in. */
const STAT_BLOCK = 512;

export interface ScratchSettings {
  /** The domain's name, for messages. */
  readonly domain: string;
  /** Paths of the scratch files, on this host. */
  readonly files: readonly string[];
  /** Bytes that must stay free; see `judgeScratch`. */
  readonly reserve?: number | undefined;
  /** The end of the error's message: what happened to the job, and what to do. */
  readonly remedy: string;
  readonly onWarning?: ((message: string) => void) | undefined;
}

export interface ScratchGuardOptions extends ScratchSettings {
  readonly signal?: AbortSignal | undefined;
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
  const { signal, giveUp } = options;
  const short = new AbortController();
  let givenUp: Promise<void> | undefined;
  const folders = foldersOf(options);
  const look = (): void => {
    if (givenUp) return;
    const error = firstError(folders);
    if (!error) return;
    short.abort(error);
    // If this fails, the caller's cleanup after the error tries again.
    givenUp = giveUp().catch(() => undefined);
  };
  look();
  const timer = setInterval(look, LOOK_EVERY_MS);
  try {
    return await work(AbortSignal.any(signal ? [signal, short.signal] : [short.signal]));
  } catch (error) {
    throw short.signal.aborted ? short.signal.reason : error;
  } finally {
    clearInterval(timer);
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

/** A folder with scratch files, and the recent samples of their sizes. */
class ScratchFolder {
  readonly #path: string;
  readonly #files: readonly string[];
  readonly #options: ScratchSettings;
  /** Bytes used by the scratch files or free, at the first look. */
  #room: number | undefined;
  #recent: readonly ScratchSample[] = [];
  #hasWarned = false;

  constructor(path: string, files: readonly string[], options: ScratchSettings) {
    this.#path = path;
    this.#files = files;
    this.#options = options;
  }

  /** Warns at most once; returns the error if the room is short. */
  look(): PreconditionError | undefined {
    const { reserve, onWarning, remedy, domain } = this.#options;
    const sample = sampleOf(this.#path, this.#files);
    if (!sample) return undefined;
    this.#room ??= sample.used + sample.left;
    this.#recent = recentSamples(this.#recent, sample);
    const verdict = judgeScratch(this.#room, this.#recent, reserve);
    const state = this.#describe(sample, verdict);
    switch (verdict.kind) {
      case "enough":
        return undefined;
      case "scarce":
        if (!this.#hasWarned) onWarning?.(`${state}. ${forecast(verdict)}`);
        this.#hasWarned = true;
        return undefined;
      case "short": {
        const message = `${state}: soon the guest's writes would have failed, so the backup was given up, and nothing was committed. ${remedy}`;
        const { used, left } = sample;
        const { fall, needed } = verdict;
        const details = { domain, folder: this.#path, used, left, fall, needed };
        return new PreconditionError("E_SCRATCH_FULL", message, { details });
      }
    }
  }

  #describe({ used, left }: ScratchSample, { fall }: ScratchVerdict): string {
    const pace = fall > 0 ? `, going by ${human(fall)} a second` : "";
    return `the scratch files of ${this.#options.domain} in ${this.#path} take ${human(used)}, and ${human(left)} is left there${pace}`;
  }
}

function forecast({ needed }: ScratchVerdict): string {
  if (needed === 0) return "When it is full the guest's writes fail";
  return `The backup is given up when less than ${human(needed)} is left, since the guest's writes fail when it is full`;
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

function human(bytes: number): string {
  return prettyBytes(bytes, { binary: true });
}
