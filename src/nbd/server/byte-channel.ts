import { setMaxListeners } from "node:events";
import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { bytesTaken } from "../patience/bytes-taken.js";
import { ClientFault } from "./errors.js";

/** Events that may end a wait, for bytes or for room. */
const STREAM_EVENTS = ["readable", "end", "drain", "finish", "close"] as const;

/**
 * Exact-length reads and back-pressured writes over a socket.
 *
 * The socket stays in paused mode and is read only when a frame is wanted. If a client keeps sending, TCP
 * holds it up once the socket's own small buffer is full. `send` settles when the socket has taken the bytes,
 * so awaiting it holds up a client that doesn't read.
 */
export class ByteChannel {
  readonly #stream: Duplex;
  readonly #socket: Socket;
  readonly #closed = new AbortController();
  #waiting: (() => void)[] = [];
  #failure: unknown;

  /** @param stream the socket, or TLS on top of it */
  constructor(socket: Socket, stream: Duplex = socket) {
    this.#socket = socket;
    this.#stream = stream;
    // This listener is never removed: a reset between two reads must not be an unhandled 'error' event.
    stream.on("error", (error) => {
      this.#failure ??=
        error instanceof ClientFault
          ? error
          : new ClientFault("DISCONNECTED", `the connection failed: ${error.message}`, { cause: error });
    });
    stream.once("close", () => this.#closed.abort(this.#lost()));
    // Each request in flight may add a listener; that is no leak to warn of.
    setMaxListeners(0, this.#closed.signal);
    for (const event of STREAM_EVENTS) stream.on(event, this.#wake);
  }

  /** Aborted when the connection has ended, with the reason for which reads and writes then fail. */
  get signal(): AbortSignal {
    return this.#closed.signal;
  }

  /** Why the connection ended, if it failed or was destroyed. */
  get failure(): unknown {
    return this.#failure;
  }

  /** Sent bytes that the system has taken. The number rises as long as the client reads. */
  get bytesTaken(): number {
    return bytesTaken(this.#socket);
  }

  /** Whether sent bytes wait until the client reads. */
  get hasUnsentBytes(): boolean {
    return this.#stream.writableLength > 0;
  }

  /** Whether bytes have arrived that were not read yet. */
  get hasUnreadBytes(): boolean {
    return this.#stream.readableLength > 0;
  }

  /**
   * The next `length` bytes.
   * @throws {ClientFault} if the connection ends before them
   */
  async read(length: number): Promise<Buffer> {
    if (length === 0) return Buffer.alloc(0);
    for (;;) {
      const bytes: Buffer | null = this.#stream.read(length);
      if (bytes?.length === length) return bytes;
      // A stream that has ended returns the remaining bytes, even if there are too few.
      if (bytes !== null || this.#stream.readableEnded || this.#stream.destroyed) throw this.#lost();
      await this.#change();
    }
  }

  /** Reads `length` bytes and discards them, a piece at a time. */
  async skip(length: number): Promise<void> {
    for (let left = length; left > 0; ) {
      const piece = await this.read(Math.min(left, 64 * 1024));
      left -= piece.length;
    }
  }

  /**
   * Writes all `parts` without another frame in between. Settles when the socket has room again; the socket
   * owns the parts until then.
   */
  async send(parts: readonly Uint8Array[]): Promise<void> {
    if (!this.#stream.writable) throw this.#lost();
    this.#stream.cork();
    for (const part of parts) this.#stream.write(part);
    this.#stream.uncork();
    while (this.#stream.writableNeedDrain) await this.#change();
    if (this.#stream.destroyed) throw this.#lost();
  }

  /** Hangs up once the system has taken everything that was sent. */
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

  /** Leaves reading from the stream to another owner; errors are still handled here. */
  release(): void {
    for (const event of STREAM_EVENTS) this.#stream.removeListener(event, this.#wake);
  }

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
