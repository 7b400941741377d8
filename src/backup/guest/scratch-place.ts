import prettyBytes from "pretty-bytes";
import { PreconditionError } from "../base/errors.js";
import { judgeScratch, recentSamples, type ScratchSample, type ScratchVerdict } from "./judge-scratch.js";

/** What all places of a job's scratch images have in common. */
export interface ScratchPolicy {
  /** The domain's name, for messages. */
  readonly domain: string;
  /** Bytes that must stay free; see `judgeScratch`. */
  readonly reserve?: number | undefined;
  /** The end of the error's message: what happened to the job, and what to do. */
  readonly remedy: string;
  readonly onWarning?: ((message: string) => void) | undefined;
}

/** What was found at a look. */
interface ScratchState {
  /** Bytes that were used or left at the first look. */
  readonly room: number;
  readonly verdict: ScratchVerdict;
  /** For a job that has to be given up: `E_SCRATCH_FULL`. */
  readonly error: PreconditionError | undefined;
}

/** A folder or device with scratch images, and the recent samples of their sizes. */
export class ScratchPlace {
  readonly #what: string;
  readonly #path: string;
  readonly #policy: ScratchPolicy;
  #room: number | undefined;
  #recent: readonly ScratchSample[] = [];
  #hasWarned = false;

  /** @param what is there, with its path, for messages: `the scratch files of web in /var/tmp` */
  constructor(what: string, path: string, policy: ScratchPolicy) {
    this.#what = what;
    this.#path = path;
    this.#policy = policy;
  }

  /** Takes a new sample into account, and warns at most once. */
  judge(sample: ScratchSample): ScratchState {
    this.#room ??= sample.used + sample.left;
    this.#recent = recentSamples(this.#recent, sample);
    const verdict = judgeScratch(this.#room, this.#recent, this.#policy.reserve);
    if (verdict.kind === "scarce" && !this.#hasWarned) {
      this.#policy.onWarning?.(`${this.#describe(sample, verdict)}. ${forecast(verdict)}`);
      this.#hasWarned = true;
    }
    return { room: this.#room, verdict, error: this.#errorOf(sample, verdict) };
  }

  #errorOf(sample: ScratchSample, verdict: ScratchVerdict): PreconditionError | undefined {
    if (verdict.kind !== "short") return undefined;
    const { domain, remedy } = this.#policy;
    const message = `${this.#describe(sample, verdict)}: soon the guest's writes would have failed, so the backup was given up, and nothing was committed. ${remedy}`;
    const { used, left } = sample;
    const { fall, needed } = verdict;
    const details = { domain, folder: this.#path, used, left, fall, needed };
    return new PreconditionError("E_SCRATCH_FULL", message, { details });
  }

  #describe({ used, left }: ScratchSample, { fall }: ScratchVerdict): string {
    const pace = fall > 0 ? `, going by ${human(fall)} a second` : "";
    return `${this.#what} take ${human(used)}, and ${human(left)} is left there${pace}`;
  }
}

function forecast({ needed }: ScratchVerdict): string {
  if (needed === 0) return "When it is full the guest's writes fail";
  return `The backup is given up when less than ${human(needed)} is left, since the guest's writes fail when it is full`;
}

function human(bytes: number): string {
  return prettyBytes(bytes, { binary: true });
}
