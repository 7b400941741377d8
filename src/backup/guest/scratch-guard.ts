import { statfsSync, statSync } from "node:fs";
import { dirname } from "node:path";
import prettyBytes from "pretty-bytes";
import { PreconditionError } from "../base/errors.js";
import { judgeScratch, recentSamples, type ScratchSample, type ScratchVerdict } from "./scratch-space.js";

/** A look is a few system calls. */
const LOOK_EVERY_MS = 250;
/** What `st_blocks` counts in. */
const STAT_BLOCK = 512;

export interface ScratchSettings {
  /** The domain's name, for messages. */
  readonly domain: string;
  /** Paths of the scratch files, on this host. */
  readonly files: readonly string[];
  /** Bytes that have to be left; see `judgeScratch`. */
  readonly reserve?: number | undefined;
  /** What became of the job, and what to do: the end of the error's message. */
  readonly remedy: string;
  readonly onWarning?: ((message: string) => void) | undefined;
}

export interface ScratchGuardOptions extends ScratchSettings {
  readonly signal?: AbortSignal | undefined;
  /** Called once, when the room is short and the signal of `work` has fired: all clients leave, and the job ends. */
  readonly giveUp: () => Promise<void>;
}

/**
 * Does `work` while the scratch files have room, and gives the job up before the guest would fill what is left: with QEMU's
 * default it is the guest's write that fails where the old content finds no place.
 *
 * The job is given up at once, and not when `work` has ended: that may be flushing images for minutes.
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
    // Where it fails, whoever clears up after the error tries again.
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
 * Before a job begins: it would be given up at once.
 * @throws {PreconditionError} `E_SCRATCH_FULL`
 */
export function refuseShortScratch(settings: ScratchSettings): void {
  const error = firstError(foldersOf(settings));
  if (error) throw error;
}

function firstError(folders: readonly ScratchFolder[]): PreconditionError | undefined {
  return folders.map((folder) => folder.look()).find((error) => error !== undefined);
}

/** A folder with scratch files, and how they stood. */
class ScratchFolder {
  readonly #path: string;
  readonly #files: readonly string[];
  readonly #options: ScratchSettings;
  /** What was there at the first look. */
  #room: number | undefined;
  #recent: readonly ScratchSample[] = [];
  #hasWarned = false;

  constructor(path: string, files: readonly string[], options: ScratchSettings) {
    this.#path = path;
    this.#files = files;
    this.#options = options;
  }

  /** Warns at most once; gives the error where the room is short. */
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
 * How the files stand now; undefined where that can't be told (the job has ended, say).
 *
 * Without waiting: the threads that do file I/O for Node may all be busy flushing for minutes.
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
      // XFS gives a growing file gigabytes in advance: nobody else can have them.
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
