import assert from "node:assert/strict";
import type { CompletedPart } from "@aws-sdk/client-s3";
import pLimit from "p-limit";
import { BackupError } from "../base/errors.js";
import type { AskOptions, StoredObject, UploadedPart } from "./asker.js";
import type { Bucket } from "./bucket.js";
import type { ComposedLayout } from "./composed-layout.js";
import { CopiedBounds } from "./copied-bounds.js";
import { bytesETag } from "./etags.js";
import { FilledBuffer } from "./filled-buffer.js";
import { type AfterSignal, Multipart } from "./multipart.js";
import { BUFFER_BYTES, cheapBytesOf, MOST_PARTS, PartLayout, type PieceLayout } from "./part-layout.js";
import { PartObject } from "./part-object.js";

const MIB = 1024 * 1024;
const MOST_AT_ONCE = 6;
/** Of parts that are objects of their own, how many lie in the store while the next one is uploaded. */
const COPIED_BEHIND = 2;
/** How far behind the furthest byte a write may lie: the largest cluster of an image. */
const SLACK = 2 * MIB;
/** How far the furthest byte may move between two calls of `capacity`. */
const AHEAD = 3 * MIB;

export interface UploadOptions extends AskOptions, AfterSignal {
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
  /** Large parts are made of pieces by the store. Default: a part is as large as its buffer. */
  readonly composed?: ComposedOptions | undefined;
}

export interface ComposedOptions {
  readonly layout: ComposedLayout;
  /** The key of the object that a part is before it is copied; no other object has it. */
  readonly keyOf: (partNumber: number) => string;
}

export interface LeftUpload {
  readonly uploadId: string;
  /** By their numbers, from 1. */
  readonly parts: ReadonlyMap<number, UploadedPart>;
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
 * A store takes 10,000 parts, so those of a very large object are larger than a buffer. Where the store
 * copies (`composed`), such a part is uploaded in pieces as an object of its own, and copied into the large
 * one while the next ones are uploaded. Elsewhere a piece is a part, and its buffer as large.
 *
 * An object that fits into a part is put at once.
 */
export class ObjectUpload implements AsyncDisposable {
  readonly key: string;
  readonly #bucket: Bucket;
  readonly #options: UploadOptions;
  readonly #layout: PieceLayout;
  readonly #multipart: Multipart;
  readonly #limit = pLimit(MOST_AT_ONCE);
  readonly #bufferBytes: number;
  /** Those that are filled or under way. */
  readonly #pieces = new Map<number, FilledBuffer>();
  /** Buffers that may be filled again. */
  #spare: Buffer[] = [];
  readonly #parts = new Map<number, Promise<CompletedPart>>();
  /** The parts that are objects of their own as yet. */
  readonly #objects = new Map<number, PartObject>();
  readonly #copied: CopiedBounds | undefined;
  readonly #pending = new Set<Promise<void>>();
  /** Whether the first part is kept until the end. */
  readonly #keepsFirst: boolean;
  /** How far behind the furthest byte a write may lie. */
  readonly #slack: number;
  /** Pieces below it are sealed, but for the first one if it is kept. */
  #open: number;
  /** Where the furthest byte that was written ends. */
  #end = 0;
  /** Bytes that the object has at least. */
  #least = 0;
  /** Bytes of the buffers of all pieces. */
  #taken = 0;
  #underWay = 0;
  #failure: { readonly reason: unknown } | undefined;
  /** Aborted with the first failure. */
  readonly #stop = new AbortController();
  #wake: (() => void)[] = [];
  #isDone = false;
  /** Whether the object is there. */
  #isMade = false;

  constructor(bucket: Bucket, key: string, options: UploadOptions) {
    this.key = key;
    this.#bucket = bucket;
    this.#options = options;
    const { inOrder = false, bufferBytes = BUFFER_BYTES, composed } = options;
    const cheapBytes = inOrder ? undefined : cheapBytesOf(options);
    this.#layout = composed?.layout ?? new PartLayout({ mostBytes: options.mostBytes, cheapBytes });
    if (composed) {
      const { plainParts, partBytes } = composed.layout;
      this.#copied = new CopiedBounds(this.#layout.startOf(plainParts), partBytes);
    }
    const { signal, late, stays, left } = options;
    const signals = { signal, late, stays, stop: this.#stop.signal };
    this.#multipart = new Multipart(bucket, key, signals, left?.uploadId);
    this.#bufferBytes = bufferBytes;
    this.#keepsFirst = !inOrder;
    this.#slack = inOrder ? 0 : SLACK;
    this.#open = inOrder ? 0 : 1;
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
      const bytes = data.subarray(done, done + this.#layout.bytesOf(index) - within);
      this.#pieceToWrite(index).set(bytes, within);
      done += bytes.length;
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
        if (!this.#pieces.has(index)) wanted += this.#layout.bytesOf(index);
      }
      if (wanted + this.#firstBytes <= this.#bufferBytes) break;
      await new Promise<void>((resolve) => this.#wake.push(resolve));
    }
    if (this.#failure) throw this.#failure.reason;
  }

  /** Bytes that the first part will take, if it is kept and nobody has written to it. */
  get #firstBytes(): number {
    return this.#keepsFirst && !this.#pieces.has(0) ? this.#layout.bytesOf(0) : 0;
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
    for (const [index, piece] of this.#pieces) {
      piece.cut(Math.max(0, length - this.#layout.startOf(index)));
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
    if (size <= this.#layout.bytesOf(0) && this.#parts.size === 0 && this.#objects.size === 0) {
      const etag = await this.#bucket.put(key, this.#bytesOf(0), { signal });
      return { key, size, etag };
    }
    const count = this.#layout.indexAt(size - 1) + 1;
    while (this.#open < count) {
      await this.#roomFor(this.#layout.startOf(this.#open) + 1);
      this.#seal(this.#open++, this.#open === count);
    }
    for (const number of this.#objects.keys()) if (!this.#parts.has(number)) this.#move(number);
    await this.#settled();
    if (this.#keepsFirst) this.#seal(0);
    await this.#settled();
    const numbers = Array.from({ length: this.#layout.partOf(count - 1).number }, (_, i) => i + 1);
    const parts = await Promise.all(numbers.map((number) => this.#parts.get(number)));
    const made = await this.#complete(parts.filter((part) => part !== undefined));
    await this.#copied?.assertIn(this.#bucket, made, this.#options);
    return made;
  }

  async #settled(): Promise<void> {
    await Promise.all(this.#pending);
    if (this.#failure) throw this.#failure.reason;
  }

  async #complete(parts: CompletedPart[]): Promise<Pick<StoredObject, "key" | "size" | "etag">> {
    await this.#multipart.complete(parts);
    const found = await this.#bucket.find(this.key, this.#options);
    if (found?.size === this.#end) {
      this.#isMade = true;
      return found;
    }
    const message = `s3://${this.#bucket.address.bucket}/${this.key} was uploaded with ${this.#end} bytes, and ${this.#bucket.store} has ${found?.size ?? "none"} of them: look at the store`;
    throw new BackupError("E_S3_FAILED", message, { details: { key: this.key } });
  }

  /** A piece that may be written to: its bytes are not being sent. */
  #pieceToWrite(index: number): FilledBuffer {
    const isKept = this.#keepsFirst && index === 0;
    if (index < this.#open && !isKept)
      throw new RangeError(`part ${index + 1} of ${this.key} was uploaded already`);
    if (index >= this.#layout.mostPieces) throw this.#tooLong();
    return this.#piece(index);
  }

  #tooLong(): BackupError {
    const most = this.#layout.startOf(this.#layout.mostPieces);
    const message = `${this.key} would have more than the ${most} bytes that it can have at ${this.#bucket.store} in ${MOST_PARTS} parts: keep this disk in a repository in a folder`;
    return new BackupError("E_S3_FAILED", message, { details: { key: this.key } });
  }

  #piece(index: number): FilledBuffer {
    const known = this.#pieces.get(index);
    if (known) return known;
    const length = this.#layout.bytesOf(index);
    this.#spare = this.#spare.filter((spare) => spare.length === length);
    const piece = new FilledBuffer(this.#spare.pop() ?? Buffer.alloc(length));
    this.#pieces.set(index, piece);
    this.#taken += length;
    return piece;
  }

  /** What a piece has of the object, as far as that was written. */
  #bytesOf(index: number): Buffer {
    const length = Math.min(this.#layout.bytesOf(index), this.#end - this.#layout.startOf(index));
    return this.#piece(index).front(length);
  }

  /** @param isLast whether no other piece follows */
  #seal(index: number, isLast = false): void {
    const { memory } = this.#piece(index);
    const bytes = this.#bytesOf(index);
    const { number, first, count } = this.#layout.partOf(index);
    if (number > (this.#options.composed?.layout.plainParts ?? number)) this.#copied?.note(bytes);
    this.#underWay += 1;
    const isPart = count === 1 || (isLast && index === first);
    const sent = isPart ? this.#sendPart(number, bytes) : this.#addTo(number, bytes);
    if (!isPart && index === first + count - 1) this.#move(number);
    this.#keep(sent, () => {
      this.#pieces.delete(index);
      if (memory.length === this.#layout.bytesOf(this.#open)) this.#spare.push(memory);
      this.#taken -= memory.length;
      this.#underWay -= 1;
      for (const wake of this.#wake.splice(0)) wake();
    });
  }

  #keep(work: Promise<CompletedPart>, done: () => void): void {
    const settled: Promise<void> = work
      .then(
        () => undefined,
        (reason: unknown) => this.#fail(reason),
      )
      .finally(() => {
        this.#pending.delete(settled);
        done();
      });
    this.#pending.add(settled);
  }

  /** Ends what is under way, so that the failure is told at once, and has nothing else begun. */
  #fail(reason: unknown): void {
    this.#failure ??= { reason };
    this.#stop.abort(this.#failure.reason);
  }

  #sendPart(number: number, bytes: Buffer): Promise<CompletedPart> {
    const part = this.#limit(() => this.#upload(number, bytes));
    this.#parts.set(number, part);
    return part;
  }

  /** Adds a piece to the object that a part is at first. */
  #addTo(number: number, bytes: Buffer): Promise<CompletedPart> {
    const { keyOf } = this.#options.composed as ComposedOptions;
    const { signal, late } = this.#options;
    const options = { signal, late, stop: this.#stop.signal };
    const object = this.#objects.get(number) ?? new PartObject(this.#bucket, keyOf(number), options);
    this.#objects.set(number, object);
    return object.add(bytes, (send) =>
      this.#limit(async () => {
        // A store that copies slowly is waited for, rather than filled with what it has to copy.
        await this.#parts.get(number - COPIED_BEHIND)?.catch(() => undefined);
        if (this.#failure) throw this.#failure.reason;
        return await send();
      }),
    );
  }

  /** Has the store copy a part when all its pieces are there. */
  #move(number: number): void {
    const part = (this.#objects.get(number) as PartObject).moveInto(this.#multipart, number);
    this.#parts.set(number, part);
    this.#keep(part, () => {
      if (!this.#failure) this.#objects.delete(number);
      for (const wake of this.#wake.splice(0)) wake();
    });
  }

  async #upload(number: number, bytes: Buffer): Promise<CompletedPart> {
    if (this.#failure) throw this.#failure.reason;
    const left = this.#options.left?.parts.get(number);
    // Whoever has left it may still be sending another one: the store compares the ETag when it puts them
    // together.
    if (left?.size === bytes.length && left.etag === bytesETag(bytes)) {
      return { PartNumber: number, ETag: left.etag };
    }
    return await this.#multipart.put(number, bytes);
  }

  /**
   * Ends an upload that was not finished, and drops its parts. If that fails, a later run's look finds them.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isDone = true;
    this.#fail(new BackupError("E_S3_FAILED", `the upload of ${this.key} was ended`));
    await Promise.all(this.#pending);
    const those = [...this.#objects.values(), ...(this.#isMade ? [] : [this.#multipart])];
    await Promise.all(those.map((each) => each.abort()));
  }
}
