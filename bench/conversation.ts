/** What a client says in an NBD conversation, counted. Bytes in, numbers out: no sockets here. */

const OPTION_MAGIC = 0x49484156;
const REQUEST_MAGIC = 0x25609513;
const EXTENDED_REQUEST_MAGIC = 0x21e41c71;

const READ = 0;
const WRITE = 1;
const BLOCK_STATUS = 7;

/** The client's flags, before the first option. */
const FLAGS_BYTES = 4;

export interface Counts {
  options: number;
  reads: number;
  readBytes: number;
  blockStatus: number;
  others: number;
}

/**
 * Reads the client's half of one connection, however it is cut into pieces:
 *
 *     option             IHAVEOPT (8)  option (4)  length (4)  data
 *     request            25609513 (4)  flags (2)  type (2)  cookie (8)  offset (8)  length (4)
 *     extended request   21e41c71 (4)  flags (2)  type (2)  cookie (8)  offset (8)  length (8)
 *
 * The magic number identifies the next message, so the server's replies need not be known.
 */
export class ClientHalf {
  readonly counts: Counts = { options: 0, reads: 0, readBytes: 0, blockStatus: 0, others: 0 };
  #rest: Buffer = Buffer.alloc(0);
  #skip = FLAGS_BYTES;

  /** @throws where the bytes are none of an NBD client's (TLS, for one) */
  push(bytes: Buffer): void {
    this.#rest = this.#rest.length === 0 ? bytes : Buffer.concat([this.#rest, bytes]);
    for (;;) {
      const skipped = Math.min(this.#skip, this.#rest.length);
      this.#skip -= skipped;
      this.#rest = this.#rest.subarray(skipped);
      const length = this.#rest.length < 4 ? undefined : headerBytes(this.#rest.readUInt32BE(0));
      if (length === undefined || this.#rest.length < length) return;
      this.#count(this.#rest.subarray(0, length));
      this.#rest = this.#rest.subarray(length);
    }
  }

  #count(header: Buffer): void {
    if (header.length === 16) {
      this.counts.options += 1;
      this.#skip = header.readUInt32BE(12);
      return;
    }
    const type = header.readUInt16BE(6);
    const length = header.length === 28 ? header.readUInt32BE(24) : Number(header.readBigUInt64BE(24));
    if (type === READ) {
      this.counts.reads += 1;
      this.counts.readBytes += length;
    } else if (type === BLOCK_STATUS) this.counts.blockStatus += 1;
    else this.counts.others += 1;
    // With extended headers other requests may have a payload too; a backup client sends none.
    if (type === WRITE) this.#skip = length;
  }
}

function headerBytes(magic: number): number {
  if (magic === OPTION_MAGIC) return 16;
  if (magic === REQUEST_MAGIC) return 28;
  if (magic === EXTENDED_REQUEST_MAGIC) return 32;
  throw new Error(`0x${magic.toString(16)} begins no message of an NBD client`);
}
