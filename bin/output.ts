import type { MultiBar, SingleBar } from "cli-progress";
import prettyBytes from "pretty-bytes";
import { printable } from "../src/backup/base/printable.js";
import { ResultStream } from "./result-stream.js";
import { isReaderGone } from "./standard-output.js";
import { type Line, printJson, printLines, printText } from "./terminal.js";

/** How much to log, and the format of the result. */
interface OutputOptions {
  readonly json: boolean;
  readonly quiet: boolean;
  readonly verbose: boolean;
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
    printText(process.stderr, `nbdpull: a fault of the program: ${text}`);
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

  constructor(options: OutputOptions) {
    this.#options = options;
  }

  /** Prints the result: `value` as one JSON document, or else the lines. */
  result(value: unknown, lines: readonly Line[]): void {
    const stream = this.#isStdoutTaken ? process.stderr : process.stdout;
    if (this.#options.json) printJson(stream, value);
    else if (!this.#isStdoutTaken || !this.#options.quiet) printLines(stream, lines);
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
    printLines(process.stderr, [`warning: ${message}`]);
  }

  get warnings(): readonly string[] {
    return this.#warnings;
  }

  /**
   * Prints an error. With `--json`, the error is also the document on stdout. If a part of the result is
   * already there, it stays incomplete, and the error is a document on stderr. Prints a stack trace only with
   * `--verbose`.
   */
  failure(error: unknown): void {
    this.#tell(messageOf(error), error);
    if (!this.#options.json) return;
    const isTaken = this.#isStdoutTaken || this.#stream?.begun;
    printJson(isTaken ? process.stderr : process.stdout, { error: describe(error) });
  }

  /** Reports a failure that doesn't end the run; returns its JSON form. */
  fault(about: string, error: unknown): Record<string, unknown> {
    this.#tell(`${about}: ${messageOf(error)}`, error);
    return describe(error);
  }

  #tell(message: string, error: unknown): void {
    printLines(process.stderr, [`nbdpull: ${message}`]);
    if (this.#options.verbose && error instanceof Error) printText(process.stderr, stackOf(error));
  }

  /**
   * Progress of several disks at once: bars on a terminal, otherwise a plain line now and then.
   * @param options.plain no bars, between which other lines could not be read
   */
  async progress({ plain = false }: { readonly plain?: boolean } = {}): Promise<Progress> {
    if (this.#options.quiet || this.#options.json) return SILENT;
    return process.stderr.isTTY && !plain ? await Bars.create() : new PlainLines();
  }
}

/** Receives the progress of long jobs; sizes in bytes. */
export interface Progress {
  update(name: string, position: number, total: number, readBytes: number): void;
  /** Shows whether the connection of `name` is away. */
  away(name: string, isAway: boolean): void;
  stop(): void;
}

const SILENT: Progress = { update: () => undefined, away: () => undefined, stop: () => undefined };

class Bars implements Progress {
  readonly #bars: MultiBar;
  readonly #byName = new Map<string, SingleBar>();
  readonly #started = performance.now();

  private constructor(bars: MultiBar) {
    this.#bars = bars;
  }

  /** The library is loaded only if bars are shown. */
  static async create(): Promise<Bars> {
    const { MultiBar } = await import("cli-progress");
    const bars = new MultiBar({
      format: "{name} {bar} {percentage}% {read} {rate}/s eta {eta_formatted}",
      stream: process.stderr,
      hideCursor: true,
      clearOnComplete: false,
      emptyOnZero: true,
    });
    return new Bars(bars);
  }

  update(disk: string, position: number, total: number, readBytes: number): void {
    const name = printable(disk);
    const rate = prettyBytes((readBytes * 1000) / Math.max(1, performance.now() - this.#started), {
      binary: true,
    });
    const payload = { name, read: prettyBytes(readBytes, { binary: true }), rate };
    const bar = this.#byName.get(name);
    if (bar) bar.update(position, payload);
    else this.#byName.set(name, this.#bars.create(total, position, payload));
  }

  away(disk: string, isAway: boolean): void {
    const name = printable(disk);
    this.#byName.get(name)?.update({ name: isAway ? `${name} (connection lost)` : name });
  }

  stop(): void {
    this.#bars.stop();
  }
}

class PlainLines implements Progress {
  #last = performance.now();

  update(name: string, position: number, total: number, readBytes: number): void {
    if (performance.now() - this.#last < PLAIN_LINE_EVERY_MS) return;
    this.#last = performance.now();
    const percent = total === 0 ? 100 : Math.floor((position / total) * 100);
    printLines(process.stderr, [`${name}: ${percent}%, ${prettyBytes(readBytes, { binary: true })} read`]);
  }

  away(): void {}

  stop(): void {}
}

/** A size for humans, such as `1.5 GiB`. */
export function human(bytes: number): string {
  return prettyBytes(bytes, { binary: true });
}

/** The JSON form of an error: stable code, message and details. */
function describe(error: unknown): Record<string, unknown> {
  if (!(error instanceof Error)) return { code: "E_UNKNOWN", message: String(error) };
  const {
    name: _name,
    stack: _stack,
    cause: _cause,
    code,
    details,
    ...facts
  } = error as Error & {
    readonly code?: unknown;
    readonly details?: unknown;
  };
  return {
    ...facts,
    ...(typeof details === "object" && details !== null ? details : {}),
    code: typeof code === "string" ? code : "E_FAILED",
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
