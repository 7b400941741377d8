import { createHash } from "node:crypto";
import { BackupError } from "../base/errors.js";
import { allOrNone } from "../base/in-parallel.js";
import type { AskOptions, StoredObject } from "./asker.js";
import type { Bucket } from "./bucket.js";

const MIB = 1024 * 1024;
/** Both ends of so many bytes are compared, or of a sixteenth of a part if that is more. */
const COMPARED_BYTES = 32 * MIB;
const MOST_OF_A_PART = 16;
/** Of an end. */
const END_BYTES = 64 * 1024;
const COMPARED_AT_ONCE = 8;

interface Window {
  /** In the object, in bytes. */
  readonly start: number;
  readonly end: number;
  readonly digest: string;
}

/**
 * What lies at both ends of each part that a store copies, and of each 32 MiB of it, as it was sent. It is
 * compared with what the store has made of it when the originals are gone.
 *
 *     parts     |                       |                       |
 *     compared  |~      ~|~     ~|~    ~|~      ~|~     ~|~    ~|
 */
export class CopiedBounds {
  readonly #start: number;
  readonly #partBytes: number;
  readonly #boundsOfAPart: number;
  readonly #windows: Window[] = [];
  /** Of the window that is being filled, or comes next. */
  #next = 0;
  #hash = createHash("sha256");
  #isHashed = false;
  #position: number;
  #last = Buffer.alloc(0);

  /** @param start where the first part begins, in bytes */
  constructor(start: number, partBytes: number) {
    this.#start = start;
    this.#partBytes = partBytes;
    this.#boundsOfAPart = Math.min(MOST_OF_A_PART, Math.ceil(partBytes / COMPARED_BYTES));
    this.#position = start;
  }

  /** The next bytes. */
  note(bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      const at = this.#position + done;
      const { start, end } = this.#window();
      if (at < start) {
        done += Math.min(start - at, bytes.length - done);
        continue;
      }
      const piece = bytes.subarray(done, done + end - at);
      this.#hash.update(piece);
      this.#isHashed = true;
      done += piece.length;
      if (at + piece.length === end) this.#close(end);
    }
    this.#position += bytes.length;
    this.#last = Buffer.from(bytes.subarray(-END_BYTES));
  }

  #window(): { readonly start: number; readonly end: number } {
    const bound = this.#start + Math.floor((this.#next * this.#partBytes) / this.#boundsOfAPart);
    return { start: Math.max(this.#start, bound - END_BYTES), end: bound + END_BYTES };
  }

  #close(end: number): void {
    this.#windows.push({ start: this.#window().start, end, digest: this.#hash.digest("base64") });
    this.#hash = createHash("sha256");
    this.#isHashed = false;
    this.#next += 1;
  }

  /**
   * Compares what is there.
   * @throws {BackupError} `E_S3_FAILED`: the store has copied something else
   */
  async assertIn(
    bucket: Bucket,
    { key, etag }: Pick<StoredObject, "key" | "etag">,
    options: AskOptions,
  ): Promise<void> {
    const end = this.#position;
    if (this.#isHashed) this.#close(end);
    const last = { start: end - this.#last.length, end, digest: digestOf(this.#last) };
    const compare = async ({ start, end, digest }: Window, signal: AbortSignal): Promise<void> => {
      const bytes = Buffer.allocUnsafe(end - start);
      await bucket.readRange(key, bytes, start, { signal, etag });
      if (digestOf(bytes) === digest) return;
      const message = `${bucket.store} was asked to copy parts into s3://${bucket.address.bucket}/${key}, and has put something else there, between bytes ${start} and ${end}: it does not copy what it is asked to. Keep this disk in another store, or in a folder`;
      throw new BackupError("E_S3_FAILED", message, { details: { key } });
    };
    await allOrNone([...this.#windows, last], COMPARED_AT_ONCE, options.signal, compare);
  }
}

function digestOf(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("base64");
}
