import assert from "node:assert/strict";
import {
  type CompletedPart,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  UploadPartCommand,
} from "@aws-sdk/client-s3";
import pLimit from "p-limit";
import { BackupError } from "../base/errors.js";
import type { AskOptions, Bucket, StoredObject, UploadedPart } from "./bucket.js";
import { isAbsent, reasonOf } from "./errors.js";
import { etagOf } from "./etags.js";
import { PartLayout } from "./part-layout.js";

const MIB = 1024 * 1024;
/** Bytes of all buffers of an upload. */
const BUFFER_BYTES = 80 * MIB;
/** The first part, one that is being filled, the one before it, and one that is on its way. */
const NEEDED_AT_ONCE = 4;
/** S3 takes no more. */
const MOST_PARTS = 10_000;
const MOST_AT_ONCE = 6;
/** How far behind the furthest byte a write may lie: the largest cluster of an image. */
const SLACK = 2 * MIB;
/** How far the furthest byte may move between two calls of `capacity`. */
const AHEAD = 3 * MIB;

export interface UploadOptions extends AskOptions {
  /** At most so many bytes are expected: parts are large enough for them. */
  readonly mostBytes: number;
  /**
   * Bytes of all buffers; default 80 MiB. Large parts need more: the first one, and two that are filled or
   * sent.
   */
  readonly bufferBytes?: number | undefined;
  /**
   * Whether it is written from front to back, its head too: then nothing is kept until the end, and all parts
   * have the same size.
   */
  readonly inOrder?: boolean | undefined;
  /**
   * An upload of this object that another process has left: its parts are not sent again if they are the
   * same.
   */
  readonly left?: LeftUpload | undefined;
}

export interface LeftUpload {
  readonly uploadId: string;
  /** By their numbers, from 1. */
  readonly parts: ReadonlyMap<number, UploadedPart>;
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
 * Buffers are those of the first part, of what is under way and of what is filled. `capacity` waits until
 * another one has room in `bufferBytes`, or nothing is under way.
 *
 * An object that fits into a part is put at once.
 */
export class ObjectUpload implements AsyncDisposable {
  readonly key: string;
  readonly #bucket: Bucket;
  readonly #options: UploadOptions;
  readonly #layout: PartLayout;
  readonly #limit = pLimit(MOST_AT_ONCE);
  readonly #bufferBytes: number;
  readonly #parts = new Map<number, Part>();
  /** Buffers that may be filled again. */
  #spare: Buffer[] = [];
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
  /** Bytes of the buffers of all parts. */
  #taken = 0;
  #underWay = 0;
  #uploadId: Promise<string> | undefined;
  #failure: { readonly reason: unknown } | undefined;
  #wake: (() => void)[] = [];
  #isDone = false;

  constructor(bucket: Bucket, key: string, options: UploadOptions) {
    this.key = key;
    this.#bucket = bucket;
    this.#options = options;
    const { mostBytes, inOrder = false, bufferBytes = BUFFER_BYTES } = options;
    const cheapBytes = inOrder ? undefined : Math.floor(bufferBytes / NEEDED_AT_ONCE / MIB) * MIB;
    this.#layout = new PartLayout({ mostBytes, cheapBytes });
    this.#bufferBytes = bufferBytes;
    this.#keepsFirst = !inOrder;
    this.#slack = inOrder ? 0 : SLACK;
    this.#open = inOrder ? 0 : 1;
    if (options.left) this.#uploadId = Promise.resolve(options.left.uploadId);
  }

  /** Bytes at the front for which there are parts of an upload that was left, whatever is in them. */
  get leftBytes(): number {
    const { parts } = this.#options.left ?? {};
    let count = 0;
    while (parts?.get(count + 1)?.size === this.#layout.bytesOf(count)) count += 1;
    return this.#layout.startOf(count);
  }

  /** Bytes that the object will have. */
  get size(): number {
    return Math.max(this.#end, this.#least);
  }

  /** Takes a copy of the bytes as soon as there is room for it. What lies between becomes zeroes. */
  async write(data: Uint8Array, position: number): Promise<void> {
    for (let done = 0; done < data.length; ) {
      const at = position + done;
      // A part at a time, so that a gap does not fill the memory.
      for (let next = this.#layout.startOf(this.#open + 1); next + this.#slack <= at; ) {
        await this.#roomFor(next);
        this.#end = Math.max(this.#end, next);
        this.#seal(this.#open++);
        next = this.#layout.startOf(this.#open + 1);
      }
      const piece = data.subarray(done, done + this.#layout.startOf(this.#layout.indexAt(at) + 1) - at);
      await this.#roomFor(at + piece.length);
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
      const index = this.#layout.indexAt(at);
      const within = at - this.#layout.startOf(index);
      const piece = data.subarray(done, done + this.#layout.bytesOf(index) - within);
      this.#partToWrite(index).bytes.set(piece, within);
      done += piece.length;
    }
    this.#end = Math.max(this.#end, position + data.length);
    const sealed = this.#layout.indexAt(Math.max(0, this.#end - this.#slack));
    while (this.#open < sealed) this.#seal(this.#open++);
  }

  /**
   * Waits until more may be written.
   * @throws the first failure of an upload
   */
  async capacity(): Promise<void> {
    await this.#roomFor(this.#end + AHEAD);
  }

  /** Waits until there is room for what is written before `end`, or nothing is under way that takes it. */
  async #roomFor(end: number): Promise<void> {
    const last = this.#layout.indexAt(Math.max(0, end - 1));
    while (this.#underWay > 0 && this.#failure === undefined) {
      let wanted = this.#taken;
      for (let index = this.#open; index <= last; index += 1) {
        if (!this.#parts.has(index)) wanted += this.#layout.bytesOf(index);
      }
      if (wanted + this.#firstBytes <= this.#bufferBytes) break;
      await new Promise<void>((resolve) => this.#wake.push(resolve));
    }
    if (this.#failure) throw this.#failure.reason;
  }

  /** Bytes that the first part will take, if it is kept and nobody has written to it. */
  get #firstBytes(): number {
    return this.#keepsFirst && !this.#parts.has(0) ? this.#layout.bytesOf(0) : 0;
  }

  /**
   * Cuts off what lies behind `length`, or fills with zeroes up to it. What was uploaded already must lie
   * before it.
   */
  truncate(length: number): void {
    this.#least = length;
    if (length >= this.#end) return;
    const uploaded = this.#open > (this.#keepsFirst ? 1 : 0) ? this.#open : 0;
    assert(length >= this.#layout.startOf(uploaded), "the part was uploaded already");
    for (const [index, { bytes }] of this.#parts) {
      const from = Math.max(0, length - this.#layout.startOf(index));
      if (from < bytes.length) bytes.fill(0, from);
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
    if (size <= this.#layout.bytesOf(0) && this.#uploads.size === 0) {
      const etag = await this.#bucket.put(key, this.#part(0).bytes.subarray(0, size), { signal });
      return { key, size, etag };
    }
    const count = this.#layout.indexAt(size - 1) + 1;
    while (this.#open < count) {
      await this.#roomFor(this.#layout.startOf(this.#open) + 1);
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

  /** A part that may be written to: its bytes are not being sent. */
  #partToWrite(index: number): Part {
    const isKept = this.#keepsFirst && index === 0;
    if (index < this.#open && !isKept)
      throw new RangeError(`part ${index + 1} of ${this.key} was uploaded already`);
    if (index >= MOST_PARTS) throw this.#tooLong();
    return this.#part(index);
  }

  #tooLong(): BackupError {
    const most = this.#layout.startOf(MOST_PARTS);
    const message = `${this.key} would have more than the ${most} bytes that it can have at ${this.#bucket.store} in ${MOST_PARTS} parts: keep this disk in a repository in a folder`;
    return new BackupError("E_S3_FAILED", message, { details: { key: this.key } });
  }

  #part(index: number): Part {
    const known = this.#parts.get(index);
    if (known) return known;
    const length = this.#layout.bytesOf(index);
    this.#spare = this.#spare.filter((spare) => spare.length === length);
    const bytes = this.#spare.pop()?.fill(0) ?? Buffer.alloc(length);
    const part = { bytes };
    this.#parts.set(index, part);
    this.#taken += length;
    return part;
  }

  #seal(index: number): void {
    const { bytes } = this.#part(index);
    const length = Math.min(bytes.length, this.#end - this.#layout.startOf(index));
    this.#underWay += 1;
    const upload = this.#limit(() => this.#upload(index, bytes.subarray(0, length)));
    this.#uploads.set(index, upload);
    upload
      .catch((reason: unknown) => {
        this.#failure ??= { reason };
      })
      .finally(() => {
        this.#parts.delete(index);
        if (bytes.length === this.#layout.bytesOf(this.#open)) this.#spare.push(bytes);
        this.#taken -= bytes.length;
        this.#underWay -= 1;
        for (const wake of this.#wake.splice(0)) wake();
      });
  }

  async #upload(index: number, Body: Buffer): Promise<CompletedPart> {
    if (this.#failure) throw this.#failure.reason;
    const UploadId = await this.#begin();
    const PartNumber = index + 1;
    const left = this.#options.left?.parts.get(PartNumber);
    // Whoever has left it may still be sending another one: the store compares the ETag when it puts them
    // together.
    if (left?.size === Body.length && left.etag === etagOf(Body)) return { PartNumber, ETag: left.etag };
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
