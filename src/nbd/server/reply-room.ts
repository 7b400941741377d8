import { addAbortListener } from "node:events";
import { Pace } from "../patience/pace.js";
import type { ByteChannel } from "./byte-channel.js";
import { MIN_RATE } from "./clients.js";
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
 * connection is bounded, but there may be many connections. A client that takes hardly any reply bytes while
 * others wait for room is disconnected, so that none waits forever. A slow one that reads may stay.
 */
/** How often a client's pace is looked at within the time-out: a suspension of this process counts once. */
const LOOKS = 4;

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
    let taken = channel.bytesTaken;
    let pace = new Pace(MIN_RATE, stallTimeoutMs);
    const watch = setInterval(() => {
      const before = taken;
      taken = channel.bytesTaken;
      const keepsOthers = [...this.#waiting].some((waiting) => waiting.channel !== channel);
      if (keepsOthers) pace.note(stallTimeoutMs / LOOKS, taken - before);
      else pace = new Pace(MIN_RATE, stallTimeoutMs);
      if (!pace.isTooSlow) return;
      const message = `the client hardly read its replies: it fell ${stallTimeoutMs / 1000} s behind ${MIN_RATE} bytes a second while others waited`;
      channel.destroy(new ClientFault("STALLED", message));
    }, stallTimeoutMs / LOOKS);
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
