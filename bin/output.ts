import type { MultiBar, SingleBar } from "cli-progress";
import prettyBytes from "pretty-bytes";
import { ResultStream } from "./result-stream.js";

/** How much of the talk is wanted, and in which form the result. */
export interface OutputOptions {
  readonly json: boolean;
  readonly quiet: boolean;
  readonly verbose: boolean;
}

/**
 * A reader that went away (`nbdpull map … | head`) is no reason to leave anything half made: what it would have read is
 * dropped, and the work goes on.
 */
export function surviveClosedPipes(): void {
  for (const stream of [process.stdout, process.stderr]) {
    stream.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code !== "EPIPE") throw error;
    });
  }
}

const PLAIN_LINE_EVERY_MS = 10_000;

/** stdout is the result, stderr is the talk. */
export class Output {
  readonly #options: OutputOptions;
  #warnings: string[] = [];
  #stream: ResultStream | undefined;

  constructor(options: OutputOptions) {
    this.#options = options;
  }

  /** The result: `value` as one JSON document, or else the text. */
  result(value: unknown, text: string): void {
    if (this.#options.json) process.stdout.write(`${JSON.stringify(value, null, 2)}\n`);
    else if (text !== "") process.stdout.write(text.endsWith("\n") ? text : `${text}\n`);
  }

  /** The form of the result. */
  get json(): boolean {
    return this.#options.json;
  }

  /** In place of {@link result} where it may be very large: what is appended is the document, in either form. */
  stream(): ResultStream {
    this.#stream = new ResultStream();
    return this.#stream;
  }

  note(message: string): void {
    if (!this.#options.quiet) process.stderr.write(`${message}\n`);
  }

  warn(message: string): void {
    this.#warnings.push(message);
    process.stderr.write(`warning: ${message}\n`);
  }

  get warnings(): readonly string[] {
    return this.#warnings;
  }

  /**
   * With `--json` the error is the document on stdout too, unless a part of the result is there already: that stays as
   * incomplete as it is then, and the error is a document on stderr. A stack trace only with `--verbose`.
   */
  failure(error: unknown): void {
    process.stderr.write(`nbdpull: ${messageOf(error)}\n`);
    if (this.#options.verbose && error instanceof Error) process.stderr.write(`${stackOf(error)}\n`);
    if (!this.#options.json) return;
    const stream = this.#stream?.begun ? process.stderr : process.stdout;
    stream.write(`${JSON.stringify({ error: describe(error) }, null, 2)}\n`);
  }

  /** Tells of a failure that does not end the run; gives its JSON form. */
  fault(about: string, error: unknown): Record<string, unknown> {
    process.stderr.write(`nbdpull: ${about}: ${messageOf(error)}\n`);
    if (this.#options.verbose && error instanceof Error) process.stderr.write(`${stackOf(error)}\n`);
    return describe(error);
  }

  /** Progress of several disks at once: bars on a terminal, a plain line now and then elsewhere. */
  async progress(): Promise<Progress> {
    if (this.#options.quiet || this.#options.json) return SILENT;
    return process.stderr.isTTY ? await Bars.create() : new PlainLines();
  }
}

/** What long jobs report to; sizes in bytes. */
export interface Progress {
  update(name: string, position: number, total: number, readBytes: number): void;
  stop(): void;
}

const SILENT: Progress = { update: () => undefined, stop: () => undefined };

class Bars implements Progress {
  readonly #bars: MultiBar;
  readonly #byName = new Map<string, SingleBar>();
  readonly #started = performance.now();

  private constructor(bars: MultiBar) {
    this.#bars = bars;
  }

  /** The library is loaded only where bars are wanted. */
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

  update(name: string, position: number, total: number, readBytes: number): void {
    const rate = prettyBytes((readBytes * 1000) / Math.max(1, performance.now() - this.#started), {
      binary: true,
    });
    const payload = { name, read: prettyBytes(readBytes, { binary: true }), rate };
    const bar = this.#byName.get(name);
    if (bar) bar.update(position, payload);
    else this.#byName.set(name, this.#bars.create(total, position, payload));
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
    process.stderr.write(`${name}: ${percent}%, ${prettyBytes(readBytes, { binary: true })} read\n`);
  }

  stop(): void {}
}

/** `1.5 GiB`, as people read it. */
export function human(bytes: number): string {
  return prettyBytes(bytes, { binary: true });
}

/** The JSON form of an error: stable code, message, and the facts beside it. */
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

/** The stack and those of all causes. */
function stackOf(error: Error): string {
  const cause = error.cause instanceof Error ? `\ncaused by: ${stackOf(error.cause)}` : "";
  return `${error.stack ?? error.message}${cause}`;
}
