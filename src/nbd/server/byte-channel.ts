import { setMaxListeners } from "node:events";
import type { Duplex } from "node:stream";
import { ClientFault } from "./errors.js";

/** Whatever may end a wait, for bytes as well as for room. */
const STREAM_EVENTS = ["readable", "end", "drain", "finish", "close"] as const;

/**
 * Exact-length reads and back-pressured writes over a socket.
 *
 * The socket stays in paused mode and is asked for bytes only when a frame is wanted, so a client that sends without
 * pause is held up by TCP once the socket's own small buffer is full. `send` settles when the socket has taken the
 * bytes, so whoever waits for it holds up a client that doesn't read.
 */
export class ByteChannel {
  readonly #stream: Duplex;
  readonly #closed = new AbortController();
  #waiting: (() => void)[] = [];
  #partsTaken = 0;
  #failure: unknown;

  constructor(stream: Duplex) {
    this.#stream = stream;
    // This listener stays for good: a reset between two reads must not be an unhandled 'error' event.
    stream.on("error", (error) => {
      this.#failure ??=
        error instanceof ClientFault
          ? error
          : new ClientFault("DISCONNECTED", `the connection failed: ${error.message}`, { cause: error });
    });
    stream.once("close", () => this.#closed.abort(this.#lost()));
    // Each request in flight may listen to it; that is no leak to warn of.
    setMaxListeners(0, this.#closed.signal);
    for (const event of STREAM_EVENTS) stream.on(event, this.#wake);
  }

  /** Aborted when the connection is gone, for the same reason that reads and writes fail with from then on. */
  get signal(): AbortSignal {
    return this.#closed.signal;
  }

  /** Why the connection was given up, if it failed or was destroyed. */
  get failure(): unknown {
    return this.#failure;
  }

  /** How many parts of what was sent the system has taken: it goes up as long as the client reads. */
  get partsTaken(): number {
    return this.#partsTaken;
  }

  /** True if bytes have arrived that nobody has read. */
  get hasUnreadBytes(): boolean {
    return this.#stream.readableLength > 0;
  }

  /**
   * The next `length` bytes.
   * @throws {ClientFault} where the connection ends before them
   */
  async read(length: number): Promise<Buffer> {
    if (length === 0) return Buffer.alloc(0);
    for (;;) {
      const bytes: Buffer | null = this.#stream.read(length);
      if (bytes?.length === length) return bytes;
      // A stream that has ended gives what is left, even if that is less than was asked for.
      if (bytes !== null || this.#stream.readableEnded || this.#stream.destroyed) throw this.#lost();
      await this.#change();
    }
  }

  /** Reads `length` bytes and forgets them, a piece at a time. */
  async skip(length: number): Promise<void> {
    for (let left = length; left > 0; ) {
      const piece = await this.read(Math.min(left, 64 * 1024));
      left -= piece.length;
    }
  }

  /**
   * Writes all `parts` without another frame in between; settles when the socket has room again. The socket owns the
   * parts until then.
   */
  async send(parts: readonly Uint8Array[]): Promise<void> {
    if (!this.#stream.writable) throw this.#lost();
    this.#stream.cork();
    for (const part of parts) this.#stream.write(part, this.#noteTaken);
    this.#stream.uncork();
    while (this.#stream.writableNeedDrain) await this.#change();
    if (this.#stream.destroyed) throw this.#lost();
  }

  /** Hangs up once everything that was sent is on its way. */
  async end(): Promise<void> {
    this.#stream.end();
    while (!this.#stream.writableFinished && !this.#stream.destroyed) await this.#change();
    this.#stream.destroy();
  }

  /** Hangs up at once. Pending and later reads and writes fail with `reason`. */
  destroy(reason: unknown): void {
    this.#failure ??= reason;
    this.#stream.destroy();
  }

  /** Leaves the stream to another owner, which takes over reading; errors stay looked after. */
  release(): void {
    for (const event of STREAM_EVENTS) this.#stream.removeListener(event, this.#wake);
  }

  readonly #noteTaken = (): void => {
    this.#partsTaken += 1;
  };

  readonly #wake = (): void => {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  };

  #change(): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
    });
  }

  #lost(): unknown {
    return this.#failure ?? new ClientFault("DISCONNECTED", "the client disconnected");
  }
}
