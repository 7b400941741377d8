import { decodeError } from "./errors.js";
import { type Packet, STATUS } from "./packets.js";
import { UnreadableError, XdrReader } from "./xdr.js";

/**
 * The bytes that come as a stream after the answer to a call: packets of status `continue`, an empty one at
 * their end, and one of status `ok` that confirms that the client has seen that.
 */
export class Download {
  readonly bytes: Promise<Buffer>;
  readonly #most: number;
  #pieces: Buffer[] = [];
  #hasFailed = false;
  #length = 0;
  #resolve: (bytes: Buffer) => void = () => undefined;
  #reject: (error: unknown) => void = () => undefined;

  /** @param most bytes that make sense */
  constructor(most: number) {
    this.#most = most;
    this.bytes = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    // It may fail before anybody waits for it.
    this.bytes.catch(() => undefined);
  }

  /**
   * @returns `finish`: now the client has to say that it has all; `ended`: nothing more comes
   * @throws {UnreadableError} this makes no sense
   */
  take({ status, payload }: Packet): "more" | "finish" | "ended" {
    if (status === STATUS.continue) {
      if (payload.length === 0) return "finish";
      this.#length += payload.length;
      if (this.#length > this.#most) throw new UnreadableError(`a stream of more than ${this.#most} bytes`);
      // What nobody waits for comes nevertheless, up to its end.
      if (!this.#hasFailed) this.#pieces.push(Buffer.from(payload));
      return "more";
    }
    if (status === STATUS.ok) this.#resolve(Buffer.concat(this.#pieces));
    else if (status === STATUS.error) this.#reject(decodeError(new XdrReader(payload)));
    else throw new UnreadableError(`a stream of status ${status}`);
    return "ended";
  }

  fail(error: unknown): void {
    this.#hasFailed = true;
    this.#pieces = [];
    this.#reject(error);
  }
}
