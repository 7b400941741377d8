/**
 * A byte stream to a server over TCP or a Unix socket. The only module that uses node:net.
 *
 * The receiver says where the next bytes go. On a plain socket, the kernel writes right there; TLS has its
 * own buffers of one record each (16 KiB), from which the bytes are gathered.
 */

import { connect, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import { ConnectionError, NbdError } from "./errors.js";
import { bytesTaken } from "./patience/bytes-taken.js";
import type { Endpoint } from "./uri.js";

/** Receives bytes. An error that it throws ends the connection. */
export interface Receiver {
  /** Where the next bytes go; never empty. The buffer is lent until the next call of `received`. */
  target(): Uint8Array;
  /** `count` bytes are at the start of the last lent buffer. */
  received(count: number): void;
  /** No more bytes will come. Called once. */
  closed(error: NbdError): void;
}

const NOBODY: Receiver = {
  target: () => new Uint8Array(256),
  received: () => {},
  closed: () => {},
};

/** How long to wait for the server to hang up after the goodbye; milliseconds. */
const FAREWELL_MS = 1000;
const KEEP_ALIVE_MS = 30_000;
/**
 * Milliseconds to wait for one address of a host that has several, before the next one is tried. With Node's
 * default, a slow address is given up too early.
 */
const NEXT_ADDRESS_MS = 1000;

export class Transport {
  /** The peer's address, for messages. */
  readonly peer: string;
  /** Resolves when the connection is established; rejects with a ConnectionError. */
  readonly connected: Promise<void>;
  readonly #socket: Socket;
  /** The socket, or TLS on top of it. */
  #stream: Duplex;
  #receiver: Receiver = NOBODY;
  /** The receiver that lent the buffer which the kernel writes to next. */
  #lender: Receiver = NOBODY;
  #failure: NbdError | undefined;
  #isConnected = false;
  #received = 0;
  /** Bytes of messages without their payload. */
  #headers = 0;
  /** The buffer in which records are gathered, and the number of bytes in it. */
  #gathering: Uint8Array | undefined;
  #gathered = 0;
  #isHandingOver = false;
  /**
   * Messages not yet sent. It serves the handshake, which sends several one after the other: requests come in
   * batches already.
   */
  #outbox: Uint8Array[] = [];

  /**
   * Starts to connect.
   * @param upgradable true if TLS will follow, which rules out receiving in place
   */
  constructor(endpoint: Endpoint, upgradable: boolean) {
    this.peer = describe(endpoint);
    const target =
      endpoint.kind === "unix" ? { path: endpoint.path } : { host: endpoint.host, port: endpoint.port };
    const socket = connect({
      ...target,
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: KEEP_ALIVE_MS,
      autoSelectFamilyAttemptTimeout: NEXT_ADDRESS_MS,
      ...(upgradable ? {} : { onread: this.#inPlace() }),
    });
    this.#socket = socket;
    this.#stream = socket;
    this.connected = this.#establish(socket);
    this.#listen(socket);
    if (upgradable) socket.on("data", this.#onData);
  }

  /**
   * Bytes received so far, and payload that the system has taken for sending. If it doesn't grow, the peer is
   * silent. What TLS adds to messages counts as well.
   */
  get bytesMoved(): number {
    return this.#received + bytesTaken(this.#socket) - this.#headers;
  }

  /** Passes all further bytes to `receiver`, or tells it that the stream has ended. */
  set receiver(receiver: Receiver) {
    this.#handOver();
    this.#receiver = receiver;
    if (this.#failure !== undefined) receiver.closed(this.#failure);
  }

  /** Gives the receiver the bytes that arrived before it was attached. */
  replay(bytes: Uint8Array): void {
    this.#copy(bytes);
  }

  /**
   * Sends a message. `payload` must not change until `onSent` is called or the connection is destroyed.
   * Messages without payload are sent together in the next microtask: many of them then cost one system call
   * and one wake-up of the server.
   */
  write(header: Uint8Array, payload?: Uint8Array, onSent?: () => void): void {
    if (this.#failure !== undefined) return;
    this.#headers += header.length;
    if (payload === undefined) {
      this.#outbox.push(header);
      if (this.#outbox.length === 1) queueMicrotask(() => this.#sendOutbox());
      return;
    }
    this.#sendOutbox();
    this.#stream.cork();
    this.#stream.write(header);
    this.#stream.write(payload, (error) => {
      // After a failure, the connection is destroyed with everything outstanding.
      if (!error) onSent?.();
    });
    this.#stream.uncork();
  }

  #sendOutbox(): void {
    const [first] = this.#outbox;
    if (this.#failure !== undefined || first === undefined) return;
    this.#stream.write(this.#outbox.length === 1 ? first : Buffer.concat(this.#outbox));
    this.#outbox = [];
  }

  /** Puts TLS on top. `secure` gets the plain stream, which is then no longer read here. */
  async upgrade(secure: (plain: Duplex) => Promise<Duplex>): Promise<void> {
    const plain = this.#stream;
    plain.off("data", this.#onData);
    plain.off("end", this.#onEnd);
    plain.off("close", this.#onEnd);
    const stream = await secure(plain).catch((error) => {
      throw this.#failure ?? error;
    });
    this.#stream = stream;
    this.#listen(stream);
    // The stream may have failed at the very end of the handshake, before there was a listener.
    if (stream.destroyed && stream.errored == null) this.#onEnd();
    else if (stream.destroyed) this.destroy(this.#explain(stream.errored));
    else if (this.#failure !== undefined) stream.destroy();
    else stream.on("data", this.#onData);
  }

  /** Sends a last message, and hangs up when the server does or after FAREWELL_MS. */
  async end(lastWord: Uint8Array): Promise<void> {
    if (this.#failure !== undefined) return;
    this.#sendOutbox();
    const stream = this.#stream;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, FAREWELL_MS);
      stream.once("close", () => {
        clearTimeout(timer);
        resolve();
      });
      stream.end(lastWord);
    });
    this.destroy(new ConnectionError("NBD_CLOSED", `the connection to ${this.peer} is closed`));
  }

  /** Hangs up at once. No buffer is written to afterwards. */
  destroy(error: NbdError): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    this.#stream.destroy();
    this.#receiver.closed(error);
  }

  #establish(socket: Socket): Promise<void> {
    const connected = new Promise<void>((resolve, reject) => {
      socket.once("connect", () => {
        this.#isConnected = true;
        resolve();
      });
      socket.once("close", () => reject(this.#failure));
    });
    // A caller that doesn't await it learns of a failure through its receiver.
    connected.catch(() => {});
    return connected;
  }

  #listen(stream: Duplex): void {
    stream.on("error", (error: Error) => this.destroy(this.#explain(error)));
    stream.on("end", this.#onEnd);
    stream.on("close", this.#onEnd);
  }

  readonly #onEnd = (): void => {
    this.#handOver();
    const message = `the server at ${this.peer} closed the connection`;
    this.destroy(new ConnectionError("NBD_CLOSED_BY_SERVER", message));
  };

  /** Gathers all records that arrive together, as far as there is room: each piece handed on has a cost. */
  readonly #onData = (bytes: Uint8Array): void => {
    for (let at = 0; at < bytes.length && this.#failure === undefined; ) {
      this.#gathering ??= this.#receiver.target();
      const piece = bytes.subarray(at, at + this.#gathering.length - this.#gathered);
      this.#gathering.set(piece, this.#gathered);
      this.#gathered += piece.length;
      at += piece.length;
      if (this.#gathered === this.#gathering.length) this.#handOver();
    }
    giveBack(bytes);
    if (this.#gathered === 0 || this.#isHandingOver) return;
    this.#isHandingOver = true;
    setImmediate(() => {
      this.#isHandingOver = false;
      this.#handOver();
    });
  };

  #handOver(): void {
    const count = this.#gathered;
    this.#gathering = undefined;
    this.#gathered = 0;
    if (count > 0) this.#take(count);
  }

  #inPlace() {
    return {
      buffer: (): Uint8Array => {
        this.#lender = this.#failure === undefined ? this.#receiver : NOBODY;
        return this.#lender.target();
      },
      callback: (count: number, buffer: Uint8Array): boolean => {
        if (this.#lender === this.#receiver) this.#take(count);
        else this.#copy(buffer.subarray(0, count));
        return true;
      },
    };
  }

  #copy(bytes: Uint8Array): void {
    let at = 0;
    while (at < bytes.length && this.#failure === undefined) {
      const target = this.#receiver.target();
      const count = Math.min(target.length, bytes.length - at);
      target.set(bytes.subarray(at, at + count));
      at += count;
      this.#take(count);
    }
  }

  /** Tells the receiver that `count` bytes are in its buffer. Keeps its errors out of Node's event loop. */
  #take(count: number): void {
    if (this.#failure !== undefined) return;
    this.#received += count;
    try {
      this.#receiver.received(count);
    } catch (error) {
      this.destroy(error instanceof NbdError ? error : this.#explain(error));
    }
  }

  #explain(error: unknown): ConnectionError {
    const reason = reasonOf(error);
    if (this.#isConnected) {
      const message = `the connection to ${this.peer} broke: ${reason}`;
      return new ConnectionError("NBD_CONNECTION_LOST", message, { cause: error });
    }
    const message = `no connection to ${this.peer}: ${reason}`;
    return new ConnectionError("NBD_CONNECT_FAILED", message, { cause: error });
  }
}

/**
 * Returns the memory of a record that was copied: otherwise some 80 MiB wait for the garbage collector, which
 * sees only their small objects. Node 20 has no `transfer`: there they wait.
 */
function giveBack({ buffer, byteOffset, byteLength }: Uint8Array): void {
  // Nobody else has a part of it.
  if (byteOffset !== 0 || byteLength !== buffer.byteLength) return;
  if ("transfer" in buffer) (buffer.transfer as (length: number) => ArrayBuffer)(0);
}

/** An endpoint for messages. */
export function describe(endpoint: Endpoint): string {
  if (endpoint.kind === "unix") return `socket ${endpoint.path.replace("\0", "@")}`;
  return endpoint.host.includes(":")
    ? `[${endpoint.host}]:${endpoint.port}`
    : `${endpoint.host}:${endpoint.port}`;
}

const HINTS: Readonly<Record<string, string>> = {
  ENOENT: "there is no such socket; is the server running?",
  ECONNREFUSED: "nobody listens there; is the server running?",
  EACCES: "permission denied; may this user open the socket?",
  ENOTFOUND: "there is no such host",
};

function reasonOf(error: unknown): string {
  // A host with several addresses fails with one error for each; report the first.
  const first: unknown = error instanceof AggregateError ? error.errors[0] : error;
  if (!(first instanceof Error)) return String(first);
  const code = "code" in first && typeof first.code === "string" ? first.code : "";
  const hint = HINTS[code];
  return hint === undefined ? first.message || code : `${code}, ${hint}`;
}
