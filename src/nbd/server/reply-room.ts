import { addAbortListener } from "node:events";
import type { ByteChannel } from "./byte-channel.js";
import { ClientFault } from "./errors.js";

/**
 * Bytes of replies that a server holds for all clients together, and how long one client may keep others
 * waiting.
 */
interface ReplyRoomOptions {
  readonly maxBytes: number;
  readonly stallTimeoutMs: number;
}

interface Waiting {
  readonly channel: ByteChannel;
  readonly bytes: number;
  readonly enter: () => void;
}

/**
 * The memory for replies that all connections of a server share, first come, first served. The window of each
 * connection is bounded, but there may be many connections. A client that takes no reply bytes while others
 * wait for room is disconnected, so that none waits forever.
 */
export class ReplyRoom {
  readonly #options: ReplyRoomOptions;
  readonly #waiting = new Set<Waiting>();
  #bytes = 0;

  constructor(options: ReplyRoomOptions) {
    this.#options = options;
  }

  /**
   * Waits for room for a reply to the client of `channel`; a reply larger than all the room is admitted
   * alone.
   * @throws the reason why the connection ended
   */
  async enter(bytes: number, channel: ByteChannel): Promise<void> {
    const { signal } = channel;
    if (bytes === 0) return;
    signal.throwIfAborted();
    if (this.#waiting.size === 0 && this.#fits(bytes)) {
      this.#bytes += bytes;
      return;
    }
    await new Promise<void>((resolve, reject) => {
      const waiting: Waiting = {
        channel,
        bytes,
        enter: () => {
          abort[Symbol.dispose]();
          resolve();
        },
      };
      const abort = addAbortListener(signal, () => {
        this.#waiting.delete(waiting);
        reject(signal.reason);
        this.#admit();
      });
      this.#waiting.add(waiting);
    });
  }

  leave(bytes: number): void {
    this.#bytes -= bytes;
    this.#admit();
  }

  /** Like `channel.send`, but disconnects a client that stalls while others wait for room. */
  async send(channel: ByteChannel, parts: readonly Uint8Array[]): Promise<void> {
    const { stallTimeoutMs } = this.#options;
    let taken = channel.partsTaken;
    const watch = setInterval(() => {
      const keepsOthers = [...this.#waiting].some((waiting) => waiting.channel !== channel);
      if (keepsOthers && channel.partsTaken === taken) {
        const message = `the client read none of its replies for ${stallTimeoutMs / 1000} s while others waited`;
        channel.destroy(new ClientFault("STALLED", message));
      }
      taken = channel.partsTaken;
    }, stallTimeoutMs);
    try {
      await channel.send(parts);
    } finally {
      clearInterval(watch);
    }
  }

  #fits(bytes: number): boolean {
    return this.#bytes === 0 || this.#bytes + bytes <= this.#options.maxBytes;
  }

  #admit(): void {
    for (const waiting of this.#waiting) {
      if (!this.#fits(waiting.bytes)) return;
      this.#waiting.delete(waiting);
      this.#bytes += waiting.bytes;
      waiting.enter();
    }
  }
}
