import { CommanderError } from "commander";
import { BackupError, DamageError, PreconditionError, UsageError } from "../src/backup/base/errors.js";
import { NbdError, type NbdErrorCode } from "../src/nbd/index.js";

/** The exit codes that scripts rely on; docs/cli.md lists them. */
export const EXIT = { done: 0, failed: 1, usage: 2, damaged: 3, precondition: 4, warnings: 5 } as const;

/** As the help and the man pages tell them. */
export const EXIT_MEANINGS: readonly (readonly [codes: string, meaning: string])[] = [
  ["0", "done"],
  ["1", "failed, nothing was committed"],
  ["2", "usage"],
  ["3", "data is damaged or does not match"],
  ["4", "the preconditions are not met"],
  ["5", "with --strict: done, with warnings"],
  ["129, 130, 143", "ended by a signal"],
];

const SIGNAL_EXIT = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 } as const;
type HandledSignal = keyof typeof SIGNAL_EXIT;
export const HANDLED_SIGNALS = Object.keys(SIGNAL_EXIT) as readonly HandledSignal[];

/** The abort reason of all work in progress when a signal arrives. */
export class InterruptedError extends Error {
  override readonly name = "InterruptedError";
  readonly code = "E_INTERRUPTED";
  readonly signal: HandledSignal;
  readonly #left = new Set<string>();

  constructor(signal: HandledSignal, what = "nothing was committed, what was half made has been removed") {
    super(`interrupted by ${signal}: ${what}`);
    this.signal = signal;
  }

  /** What was left although what is half made is removed otherwise; undefined: nothing. */
  get left(): string | undefined {
    return this.#left.size > 0 ? [...this.#left].join("; ") : undefined;
  }

  /** Called by whoever leaves something: the message says so then. */
  tellLeft(what: string): void {
    this.#left.add(what);
    this.message = `interrupted by ${this.signal}: ${this.left}`;
  }

  /** The same, if something is left incomplete. */
  leaving(what: string): InterruptedError {
    return new InterruptedError(this.signal, what);
  }
}

/**
 * Of work on several domains, or in several steps, which are independent: those that were done stay done.
 * @param done their names
 * @param all how many domains there are; undefined: they are steps
 * @throws the signal's reason, which names them
 */
export function throwIfInterrupted(signal: AbortSignal, done: readonly string[], all?: number): void {
  if (!signal.aborted) return;
  const { reason } = signal;
  if (!(reason instanceof InterruptedError) || done.length === 0) throw reason;
  const { left } = reason;
  if (all === undefined) {
    const rest = left ?? "what was half made has been removed";
    throw reason.leaving(`${done.join(" and ")} ended before that; ${rest}`);
  }
  const rest =
    left ?? (done.length === all ? "nothing was left to do" : "of the others nothing is half made");
  throw reason.leaving(`${done.join(", ")} ended before that (${done.length} of ${all} domains); ${rest}`);
}

/** Errors of the NBD client with an exit code of their own, also if a job has wrapped them. */
const NBD_EXIT: Readonly<Partial<Record<NbdErrorCode, number>>> = {
  NBD_URI_INVALID: EXIT.usage,
  NBD_URI_UNSUPPORTED: EXIT.usage,
  NBD_TLS_CONFIG: EXIT.usage,
  NBD_EXPORT_UNKNOWN: EXIT.precondition,
  NBD_META_CONTEXT_MISSING: EXIT.precondition,
};

export function exitCodeOf(error: unknown): number {
  if (error instanceof InterruptedError) return SIGNAL_EXIT[error.signal];
  if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.done : EXIT.usage;
  if (error instanceof UsageError) return EXIT.usage;
  if (error instanceof DamageError) return EXIT.damaged;
  if (error instanceof PreconditionError) return EXIT.precondition;
  if (error instanceof NbdError || error instanceof BackupError) {
    return NBD_EXIT[error.code as NbdErrorCode] ?? EXIT.failed;
  }
  return EXIT.failed;
}

/** The worst comes last: damage is worse than a failure, which is worse than a refusal before the start. */
const BY_GRAVITY: readonly number[] = [
  EXIT.done,
  EXIT.warnings,
  EXIT.usage,
  EXIT.precondition,
  EXIT.failed,
  EXIT.damaged,
];

/** The exit code of a run in which several operations may have failed. */
export function worstExitCode(errors: readonly unknown[]): number {
  return worstOf(errors.map(exitCodeOf));
}

export function worstOf(codes: readonly number[]): number {
  return BY_GRAVITY[Math.max(0, ...codes.map((code) => BY_GRAVITY.indexOf(code)))] ?? EXIT.failed;
}
