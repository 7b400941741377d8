import { type Progress, SILENT } from "./progress.js";
import { ResultStream } from "./result-stream.js";
import { human } from "./sizes.js";
import { isReaderGone } from "./standard-output.js";
import { isScreen, type Line, printJson, printLines, printText } from "./terminal.js";

export type { Progress } from "./progress.js";
export { counted, human } from "./sizes.js";

/** How much to log, and the format of the result. */
interface OutputOptions {
  readonly json: boolean;
  readonly quiet: boolean;
  readonly verbose: boolean;
  /** Receives the result instead of standard output, as it is a part of another one. */
  readonly onResult?: (value: unknown) => void;
}

/**
 * If the reader closes the pipe (`nbdpull map … | head`), nothing must be left incomplete: the remaining
 * output is discarded, and the work continues.
 */
export function surviveClosedPipes(): void {
  for (const stream of [process.stdout, process.stderr]) {
    stream.on("error", (error: NodeJS.ErrnoException) => {
      if (!isReaderGone(error)) throw error;
    });
  }
}

/** A mistake of this program ends it with exit code 1. Node itself would print the error as it is. */
export function reportCrashes(): void {
  process.on("uncaughtException", (error: unknown) => {
    const text = error instanceof Error ? stackOf(error) : String(error);
    printText(process.stderr, `nbdpull: ${codeOf(error)}: a fault of the program: ${text}`);
    process.exit(1);
  });
}

const PLAIN_LINE_EVERY_MS = 10_000;

/** Writes the result to stdout, and messages to stderr. */
export class Output {
  readonly #options: OutputOptions;
  #warnings: string[] = [];
  #stream: ResultStream | undefined;
  #isStdoutTaken = false;
  #progress: Progress = SILENT;

  constructor(options: OutputOptions) {
    this.#options = options;
  }

  /** Prints the result: `value` as one JSON document, or else the lines. */
  result(value: unknown, lines: readonly Line[]): void {
    const stream = this.#isStdoutTaken ? process.stderr : process.stdout;
    const { json, onResult } = this.#options;
    onResult?.(value);
    if (json && onResult === undefined) printJson(stream, versioned(value));
    if (json) return;
    if (!this.#isStdoutTaken || !this.#options.quiet) printLines(stream, lines);
  }

  /**
   * For a step of a job: what is printed is the same, but its result is a part of the job's, and warnings are
   * the job's.
   */
  step(onResult: (value: unknown) => void): Output {
    const step = new Output({ ...this.#options, onResult });
    step.#warnings = this.#warnings;
    return step;
  }

  /** Prints a part of the result as soon as it is known. With `--json` all of it comes in the end. */
  part(lines: readonly Line[]): void {
    if (!this.#options.json) printLines(process.stdout, lines);
  }

  /** From here on stdout has other data, and JSON documents go to stderr. */
  leaveStdout(): void {
    this.#isStdoutTaken = true;
  }

  /** The format of the result. */
  get json(): boolean {
    return this.#options.json;
  }

  /**
   * Use this instead of {@link result} if the result may be very large: the appended data is the document, in
   * either format.
   */
  stream(): ResultStream {
    this.#stream = new ResultStream();
    return this.#stream;
  }

  note(...lines: readonly string[]): void {
    if (!this.#options.quiet) printLines(process.stderr, lines);
  }

  warn(message: string): void {
    this.#warnings.push(message);
    printLines(process.stderr, [[{ text: "warning:", colour: "yellow" }, ` ${message}`]]);
  }

  get warnings(): readonly string[] {
    return this.#warnings;
  }

  /**
   * Prints an error. With `--json`, the error is also the document on stdout. If a part of the result is
   * already there, it stays incomplete, and the error is a document on stderr. Prints a stack trace only with
   * `--verbose`.
   * @param hint what the user may have meant
   */
  failure(error: unknown, hint = ""): void {
    this.#tell(`${messageOf(error)}${hint}`, error);
    if (!this.#options.json) return;
    const isTaken = this.#isStdoutTaken || this.#stream?.begun;
    printJson(isTaken ? process.stderr : process.stdout, {
      version: JSON_VERSION,
      error: hinted(describe(error), hint),
    });
  }

  /**
   * Reports a failure that doesn't end the run; returns its JSON form.
   * @param hint what the user may have meant
   */
  fault(about: string, error: unknown, hint = ""): Record<string, unknown> {
    this.#tell(`${about}: ${messageOf(error)}${hint}`, error);
    return hinted(describe(error), hint);
  }

  #tell(message: string, error: unknown): void {
    printLines(process.stderr, [errorLine(codeOf(error), message)]);
    if (this.#options.verbose && error instanceof Error) printText(process.stderr, stackOf(error));
  }

  /**
   * Progress of several disks at once: a line for each on a terminal, otherwise a plain line now and then.
   * Where results go elsewhere, their reader may print on the same terminal, so nothing is replaced there.
   */
  async progress(): Promise<Progress> {
    if (this.#options.quiet || this.#options.json) return SILENT;
    const isShown = isScreen(process.stderr) && (this.#isStdoutTaken || isScreen(process.stdout));
    // The library is loaded only if it is shown.
    this.#progress = isShown ? new (await import("./display.js")).Display() : new PlainLines();
    return this.#progress;
  }

  /** Of this subject, such as a domain, no more progress is shown: its result comes next. */
  ended(subject: string): void {
    this.#progress.end(subject);
  }
}

class PlainLines implements Progress {
  #last = performance.now();

  update(name: string, position: number, total: number, readBytes: number): void {
    if (performance.now() - this.#last < PLAIN_LINE_EVERY_MS) return;
    this.#last = performance.now();
    const percent = total === 0 ? 100 : Math.floor((position / total) * 100);
    printLines(process.stderr, [`${name}: ${percent}%, ${human(readBytes)} read`]);
  }

  away(): void {}

  end(): void {}

  stop(): void {}
}

/** Of the JSON documents: it changes if a field goes away or means something else. */
const JSON_VERSION = 1;

/** A list has no room for it, so each of its entries has it: scripts that read such lists go on as before. */
function versioned(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(versioned);
  return typeof value === "object" && value !== null ? { version: JSON_VERSION, ...value } : value;
}

/** Disks of a manifest as JSON documents have them: a disk is called `disk` in each. */
export function asDisks<T extends { readonly name: string }>(disks: readonly T[]): (T & { disk: string })[] {
  return disks.map((disk) => ({ disk: disk.name, ...disk }));
}

/** An error as text. Codes stand where they can be searched for: docs/errors.md says more of each. */
export function errorLine(code: string, message: string): Line {
  // Messages of the operating system's errors begin with the code.
  const text = message.startsWith(`${code}: `) ? message.slice(code.length + 2) : message;
  return [{ text: "nbdpull:", colour: "red" }, ` ${code}: ${text}`];
}

function codeOf(error: unknown): string {
  if (!(error instanceof Error)) return "E_UNKNOWN";
  const { code } = error as Error & { readonly code?: unknown };
  return typeof code === "string" ? code : "E_FAILED";
}

function hinted(error: Record<string, unknown>, hint: string): Record<string, unknown> {
  return hint === "" ? error : { ...error, hint: hint.trim() };
}

/** The JSON form of an error: stable code, message and details. */
function describe(error: unknown): Record<string, unknown> {
  if (!(error instanceof Error)) return { code: codeOf(error), message: String(error) };
  const {
    name: _name,
    stack: _stack,
    cause: _cause,
    code: _code,
    details,
    ...facts
  } = error as Error & {
    readonly code?: unknown;
    readonly details?: unknown;
  };
  return {
    ...facts,
    ...(typeof details === "object" && details !== null ? details : {}),
    code: codeOf(error),
    message: messageOf(error),
  };
}

function messageOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { code } = error as NodeJS.ErrnoException;
  if (code === "ENOSPC") {
    return `no space left on the target's file system: make room, then run it again (${error.message})`;
  }
  if (code === "EFBIG") {
    return `the target's file system (or a limit of this process) can't hold a file of that size: use --format qcow2, which takes only what is stored, or another file system (${error.message})`;
  }
  if (code === "EACCES" || code === "EPERM") {
    return `${error.message}: check the permissions, or run it as a user who may`;
  }
  return error.message;
}

/** The stack traces of an error and of all its causes. Lines within a message are indented like the rest. */
function stackOf(error: Error): string {
  const cause = error.cause instanceof Error ? `\ncaused by: ${stackOf(error.cause)}` : "";
  const [head = "", ...frames] = (error.stack ?? error.message).split("\n");
  return `${[head, ...frames.map((frame) => `    ${frame.trimStart()}`)].join("\n")}${cause}`;
}
