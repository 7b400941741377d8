/**
 * XDR (RFC 4506), the encoding of libvirt's protocol: every value fills a multiple of four bytes, big-endian.
 *
 *     int, unsigned int, bool   4 bytes
 *     hyper                     8 bytes
 *     string, opaque<>          length (4 bytes), the bytes, zeroes up to a multiple of 4
 *     opaque[n]                 n bytes, zeroes up to a multiple of 4
 *     type *                    0, or 1 and the value
 *     type<>                    count (4 bytes), the values
 *
 * Pure functions. Why not a package: docs/performance-history.md.
 */

import { BackupError } from "../../base/errors.js";

/** libvirt's own limit for a string, in bytes. */
const MAX_STRING = 4 * 1024 * 1024;

/** What libvirt sent can't be understood. It ends the connection. */
export class UnreadableError extends BackupError {
  constructor(message: string) {
    super("E_LIBVIRT_ANSWER", `libvirt's answer makes no sense: ${message}`);
  }
}

/** Appends values to a message. */
export class XdrWriter {
  #bytes = Buffer.alloc(256);
  #length = 0;

  /** @param value a signed or unsigned 32-bit number */
  int(value: number): this {
    const at = this.#grow(4);
    this.#bytes.writeInt32BE(value | 0, at);
    return this;
  }

  /** An unsigned 64-bit number up to 2^53 - 1. */
  size(value: number): this {
    const at = this.#grow(8);
    this.#bytes.writeBigUInt64BE(BigInt(value), at);
    return this;
  }

  string(value: string): this {
    const bytes = Buffer.from(value);
    if (bytes.length > MAX_STRING) throw new RangeError(`a text of ${bytes.length} bytes is too long`);
    return this.int(bytes.length).fixed(bytes);
  }

  optionalString(value: string | undefined): this {
    return value === undefined ? this.int(0) : this.int(1).string(value);
  }

  strings(values: readonly string[]): this {
    this.int(values.length);
    for (const value of values) this.string(value);
    return this;
  }

  /** `opaque[n]`: the length is not part of the message. */
  fixed(bytes: Uint8Array): this {
    // The room beyond the end is zero, so the padding is, too.
    const at = this.#grow(padded(bytes.length));
    this.#bytes.set(bytes, at);
    return this;
  }

  /** The message so far; the writer must not be used again. */
  finish(): Buffer {
    return this.#bytes.subarray(0, this.#length);
  }

  #grow(bytes: number): number {
    const at = this.#length;
    this.#length += bytes;
    if (this.#length > this.#bytes.length) {
      const larger = Buffer.alloc(Math.max(this.#length, this.#bytes.length * 2));
      this.#bytes.copy(larger);
      this.#bytes = larger;
    }
    return at;
  }
}

/**
 * Takes values from a message in their order. No length is believed: nothing is allocated for bytes that are
 * not there.
 *
 * @throws {UnreadableError} from every method, if the message ends too early or a value is impossible
 */
export class XdrReader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  int(): number {
    return this.#bytes.readInt32BE(this.#take(4));
  }

  uint(): number {
    return this.#bytes.readUInt32BE(this.#take(4));
  }

  /** A 64-bit number of any size, signed. */
  bigint(): bigint {
    return this.#bytes.readBigInt64BE(this.#take(8));
  }

  /** An unsigned 64-bit number up to 2^53 - 1. */
  size(what: string): number {
    const value = this.#bytes.readBigUInt64BE(this.#take(8));
    if (value <= BigInt(Number.MAX_SAFE_INTEGER)) return Number(value);
    throw new UnreadableError(`${value} as ${what}, and numbers beyond 2^53 - 1 are not supported`);
  }

  double(): number {
    return this.#bytes.readDoubleBE(this.#take(8));
  }

  /** Invalid UTF-8 becomes U+FFFD. */
  string(): string {
    const length = this.uint();
    if (length > MAX_STRING) throw new UnreadableError(`a text of ${length} bytes`);
    return this.fixed(length).toString("utf8");
  }

  optionalString(): string | undefined {
    return this.optional(() => this.string());
  }

  optional<T>(read: () => T): T | undefined {
    const present = this.uint();
    if (present > 1) throw new UnreadableError(`${present} where only 0 and 1 have a meaning`);
    return present === 1 ? read() : undefined;
  }

  list<T>(read: () => T): T[] {
    const count = this.uint();
    // Every value has at least four bytes.
    if (count > this.#left / 4) throw new UnreadableError(`a list of ${count} in ${this.#left} bytes`);
    return Array.from({ length: count }, read);
  }

  /** `opaque[n]`: a part of the message, not a copy. */
  fixed(length: number): Buffer {
    const at = this.#take(padded(length));
    return this.#bytes.subarray(at, at + length);
  }

  /** There must be nothing more. */
  end(): void {
    if (this.#left > 0) throw new UnreadableError(`${this.#left} bytes more than expected`);
  }

  get #left(): number {
    return this.#bytes.length - this.#at;
  }

  #take(bytes: number): number {
    const at = this.#at;
    if (bytes > this.#left) throw new UnreadableError(`it ends ${bytes - this.#left} bytes too early`);
    this.#at += bytes;
    return at;
  }
}

function padded(length: number): number {
  return Math.ceil(length / 4) * 4;
}
