import assert from "node:assert/strict";
import {
  type CompletedPart,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  UploadPartCommand,
} from "@aws-sdk/client-s3";
import pLimit from "p-limit";
import { BackupError } from "../base/errors.js";
import type { AskOptions, Bucket, StoredObject } from "./bucket.js";
import { isAbsent, reasonOf } from "./errors.js";

const MIB = 1024 * 1024;
const LEAST_PART = 8 * MIB;
/** S3 takes 10,000; some are left for tables. */
const MOST_PARTS = 9_500;
/** Bytes of all buffers of an upload, as long as parts are not larger than a fifth of it. */
const BUFFER_BYTES = 80 * MIB;
/** The first part, one that is being filled, the one before it, and one that waits for its turn. */
const FILLED_AT_ONCE = 4;
/** Of a file that is written from front to back, one that is being filled, and one that waits. */
const FILLED_IN_ORDER = 2;
const MOST_AT_ONCE = 6;
/** How far behind the furthest byte a write may lie: the largest cluster of an image. */
const SLACK = 2 * MIB;

export interface UploadOptions extends AskOptions {
  /** At most so many bytes are expected: parts are large enough for them. */
  readonly mostBytes: number;
  /**
   * Bytes of all buffers; default 80 MiB. Large parts may need more: there is always room for one that is
   * sent.
   */
  readonly bufferBytes?: number | undefined;
  /** Whether it is written from front to back, its head too: then nothing is kept until the end. */
  readonly inOrder?: boolean | undefined;
}

interface Part {
  readonly bytes: Buffer;
}

/**
 * A new object, written from front to back while its parts are uploaded, several at a time. The first part is
 * kept until the end, since an image's header is written last. The object appears when `finish` succeeds, and
 * whole.
 *
 *     part 1   kept       |header  |
 *     part 2   uploaded            |########|
 *     part 3   under way                    |########|
 *     part 4   filled                                |####    |      writes land here, or SLACK before
 *
 * An object that fits into a part is put at once.
 */
export class ObjectUpload implements AsyncDisposable {
  readonly key: string;
  readonly #bucket: Bucket;
  readonly #options: UploadOptions;
  readonly #partBytes: number;
  readonly #limit: ReturnType<typeof pLimit>;
  readonly #atOnce: number;
  readonly #parts = new Map<number, Part>();
  readonly #spare: Buffer[] = [];
  readonly #uploads = new Map<number, Promise<CompletedPart>>();
  /** Whether the first part is kept until the end. */
  readonly #keepsFirst: boolean;
  /** How far behind the furthest byte a write may lie. */
  readonly #slack: number;
  /** Parts below it are sealed, but for the first one if it is kept. */
  #open: number;
  /** Where the furthest byte that was written ends. */
  #end = 0;
  /** Bytes that the object has at least. */
  #least = 0;
  #underWay = 0;
  #uploadId: Promise<string> | undefined;
  #failure: { readonly reason: unknown } | undefined;
  #wake: (() => void)[] = [];
  #isDone = false;

  constructor(bucket: Bucket, key: string, options: UploadOptions) {
    this.key = key;
    this.#bucket = bucket;
    this.#options = options;
    this.#partBytes = partBytesFor(options.mostBytes);
    const { inOrder = false, bufferBytes = BUFFER_BYTES } = options;
    this.#keepsFirst = !inOrder;
    this.#slack = inOrder ? 0 : SLACK;
    this.#open = inOrder ? 0 : 1;
    const filled = inOrder ? FILLED_IN_ORDER : FILLED_AT_ONCE;
    const room = Math.floor(bufferBytes / this.#partBytes) - filled;
    this.#atOnce = Math.max(1, Math.min(MOST_AT_ONCE, room));
    this.#limit = pLimit(this.#atOnce);
  }

  /** Bytes that the object will have. */
  get size(): number {
    return Math.max(this.#end, this.#least);
  }

  /** Takes a copy of the bytes as soon as there is room for it. What lies between becomes zeroes. */
  async write(data: Uint8Array, position: number): Promise<void> {
    for (let done = 0; done < data.length; ) {
      const at = position + done;
      await this.capacity();
      // A part at a time, so that a gap does not fill the memory.
      while ((this.#open + 1) * this.#partBytes + this.#slack <= at) {
        this.#end = Math.max(this.#end, (this.#open + 1) * this.#partBytes);
        this.#seal(this.#open++);
        await this.capacity();
      }
      const piece = data.subarray(done, done + this.#partBytes - (at % this.#partBytes));
      this.writeNow(piece, at);
      done += piece.length;
    }
  }

  /**
   * Takes a copy of the bytes. Call `capacity` before the next ones.
   * @throws {RangeError} the place was uploaded already: it lies far before what was written last
   */
  writeNow(data: Uint8Array, position: number): void {
    assert(!this.#isDone, "the upload has ended");
    for (let done = 0; done < data.length; ) {
      const at = position + done;
      const index = Math.floor(at / this.#partBytes);
      const within = at - index * this.#partBytes;
      const piece = data.subarray(done, done + this.#partBytes - within);
      this.#part(index).bytes.set(piece, within);
      done += piece.length;
    }
    this.#end = Math.max(this.#end, position + data.length);
    const sealed = Math.floor((this.#end - this.#slack) / this.#partBytes);
    while (this.#open < sealed) this.#seal(this.#open++);
  }

  /**
   * Waits until more may be written.
   * @throws the first failure of an upload
   */
  async capacity(): Promise<void> {
    while (this.#underWay > this.#atOnce && this.#failure === undefined) {
      await new Promise<void>((resolve) => this.#wake.push(resolve));
    }
    if (this.#failure) throw this.#failure.reason;
  }

  /**
   * Cuts off what lies behind `length`, or fills with zeroes up to it. What was uploaded already must lie
   * before it.
   */
  truncate(length: number): void {
    this.#least = length;
    if (length >= this.#end) return;
    const uploaded = this.#open > (this.#keepsFirst ? 1 : 0) ? this.#open : 0;
    assert(length >= uploaded * this.#partBytes, "the part was uploaded already");
    for (const [index, { bytes }] of this.#parts) {
      const from = Math.max(0, length - index * this.#partBytes);
      if (from < this.#partBytes) bytes.fill(0, from);
    }
    this.#end = length;
  }

  /**
   * Uploads what is left, and makes the object.
   * @throws {BackupError} as `storeError` names it; nothing is there then
   */
  async finish(): Promise<Pick<StoredObject, "key" | "size" | "etag">> {
    this.#isDone = true;
    const { key, signal } = { key: this.key, signal: this.#options.signal };
    const size = this.size;
    this.#end = size;
    if (size <= this.#partBytes && this.#uploads.size === 0) {
      const etag = await this.#bucket.put(key, this.#part(0).bytes.subarray(0, size), { signal });
      return { key, size, etag };
    }
    const count = Math.ceil(size / this.#partBytes);
    while (this.#open < count) {
      await this.capacity();
      this.#seal(this.#open++);
    }
    await this.#settled();
    if (this.#keepsFirst) this.#seal(0);
    await this.#settled();
    const parts = await Promise.all(Array.from({ length: count }, (_, index) => this.#uploads.get(index)));
    return { key, size, etag: await this.#complete(parts.filter((part) => part !== undefined)) };
  }

  async #settled(): Promise<void> {
    await Promise.all(this.#uploads.values()).catch(() => undefined);
    if (this.#failure) throw this.#failure.reason;
  }

  async #complete(Parts: CompletedPart[]): Promise<string> {
    const { bucket } = this.#bucket.address;
    const UploadId = await this.#begin();
    const request = { Bucket: bucket, Key: this.key, UploadId, MultipartUpload: { Parts } };
    try {
      await this.#bucket.ask("completing", this.key, this.#options, (abortSignal) =>
        this.#bucket.client.send(new CompleteMultipartUploadCommand(request), { abortSignal }),
      );
    } catch (error) {
      // The answer to an earlier try may have been lost after it had succeeded.
      if (!isAbsent((error as Error).cause) && reasonOf((error as Error).cause) !== "NoSuchUpload")
        throw error;
    }
    const found = await this.#bucket.find(this.key, this.#options);
    if (found?.size === this.#end) {
      this.#uploadId = undefined;
      return found.etag;
    }
    const message = `s3://${bucket}/${this.key} was uploaded with ${this.#end} bytes, and ${this.#bucket.store} has ${found?.size ?? "none"} of them: look at the store`;
    throw new BackupError("E_S3_FAILED", message, { details: { key: this.key } });
  }

  #part(index: number): Part {
    const known = this.#parts.get(index);
    if (known) return known;
    if (this.#uploads.has(index))
      throw new RangeError(`part ${index + 1} of ${this.key} was uploaded already`);
    const bytes = this.#spare.pop()?.fill(0) ?? Buffer.alloc(this.#partBytes);
    const part = { bytes };
    this.#parts.set(index, part);
    return part;
  }

  #seal(index: number): void {
    const { bytes } = this.#part(index);
    const length = Math.min(this.#partBytes, this.#end - index * this.#partBytes);
    this.#underWay += 1;
    const upload = this.#limit(() => this.#upload(index, bytes.subarray(0, length)));
    this.#uploads.set(index, upload);
    upload
      .catch((reason: unknown) => {
        this.#failure ??= { reason };
      })
      .finally(() => {
        this.#parts.delete(index);
        this.#spare.push(bytes);
        this.#underWay -= 1;
        for (const wake of this.#wake.splice(0)) wake();
      });
  }

  async #upload(index: number, Body: Buffer): Promise<CompletedPart> {
    if (this.#failure) throw this.#failure.reason;
    const UploadId = await this.#begin();
    const PartNumber = index + 1;
    const request = { Bucket: this.#bucket.address.bucket, Key: this.key, UploadId, PartNumber, Body };
    const { ETag } = await this.#bucket.ask("writing", this.key, this.#options, (abortSignal) =>
      this.#bucket.client.send(new UploadPartCommand(request), { abortSignal }),
    );
    return { PartNumber, ETag };
  }

  #begin(): Promise<string> {
    this.#uploadId ??= this.#create();
    return this.#uploadId;
  }

  async #create(): Promise<string> {
    const request = { Bucket: this.#bucket.address.bucket, Key: this.key };
    const { UploadId } = await this.#bucket.ask("beginning", this.key, this.#options, (abortSignal) =>
      this.#bucket.client.send(new CreateMultipartUploadCommand(request), { abortSignal }),
    );
    if (UploadId !== undefined) return UploadId;
    throw new BackupError("E_S3_FAILED", `${this.#bucket.store} began an upload without an id`);
  }

  /**
   * Ends an upload that was not finished, and drops its parts. If that fails, a later run's look finds them.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isDone = true;
    this.#failure ??= { reason: new BackupError("E_S3_FAILED", `the upload of ${this.key} was ended`) };
    await Promise.allSettled(this.#uploads.values());
    const uploadId = await this.#uploadId?.catch(() => undefined);
    if (uploadId === undefined) return;
    await this.#bucket.abortUpload({ key: this.key, uploadId }).catch(() => undefined);
  }
}

/** Bytes of a part: as few as suffice for the object, since so many are sent again after a failure. */
function partBytesFor(mostBytes: number): number {
  return Math.max(LEAST_PART, Math.ceil(mostBytes / MOST_PARTS / MIB) * MIB);
}
