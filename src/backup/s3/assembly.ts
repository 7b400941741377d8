import assert from "node:assert/strict";
import type { CompletedPart } from "@aws-sdk/client-s3";
import pLimit from "p-limit";
import { anySignal } from "../../nbd/index.js";
import { BackupError } from "../base/errors.js";
import type { AskOptions, StoredObject } from "./asker.js";
import type { Bucket } from "./bucket.js";
import { partsETag } from "./etags.js";
import { type CopiedRange, Multipart } from "./multipart.js";
import { LARGEST_PART } from "./part-layout.js";

const MIB = 1024 * 1024;
/** S3 takes no smaller part, but for the last one of an object. */
export const LEAST_PART_BYTES = 5 * MIB;
/** The store answers within the time in which a silent connection is given up. */
const COPY_BYTES = 64 * MIB;
/** Parts that are copied begin at multiples of it in their range. */
const BOUND_BYTES = 64 * 1024;
/** Of 10,000 parts that S3 takes, those that are copied; the others are for what is written. */
const MOST_COPIES = 8_000;
const COPIES_AT_ONCE = 8;
const UPLOADS_AT_ONCE = 4;

/** Bytes that this process has, or gets when they are about to be sent. */
interface WrittenRange {
  readonly length: number;
  /** @param signal ends it: the bytes are not needed any more */
  read(signal: AbortSignal): Promise<Buffer>;
}

export type AssembledRange = CopiedRange | WrittenRange;

interface AssemblyOptions extends AskOptions {
  /** As for {@link Multipart}. */
  readonly late?: AbortSignal | undefined;
  /** What the object begins with: it may be written until the end. 0: it begins with a range. */
  readonly headBytes: number;
  /** What follows. Each has 5 MiB or more, but for the last one if nothing is written behind it. */
  readonly ranges: readonly AssembledRange[];
  /** Of each part of what is written behind the ranges. */
  readonly tailPartBytes: number;
}

/** Cuts a range into parts that a store copies quickly, all of about the same size. */
function partsOf(range: AssembledRange, mostBytes: number): AssembledRange[] {
  if ("read" in range) return [range];
  const { start, length, isWhole = false, ...of } = range;
  const count = Math.ceil(length / mostBytes);
  const bound = (i: number): number =>
    i === count ? length : Math.floor((i * length) / count / BOUND_BYTES) * BOUND_BYTES;
  return Array.from({ length: count }, (_, i) => ({
    ...of,
    isWhole: isWhole && count === 1,
    start: start + bound(i),
    length: bound(i + 1) - bound(i),
  }));
}

/**
 * A new object out of ranges of others, which the store copies, and of bytes that are written before and
 * behind them. It appears when `complete` succeeds, and whole; until then it can be aborted.
 *
 *     part 1   written, kept until the end  |header  |
 *     parts    copied by the store, some written     |########|########|####|
 *     parts    written from front to back                                   |####|##|
 */
export class ObjectAssembly implements AsyncDisposable {
  readonly key: string;
  readonly #bucket: Bucket;
  readonly #options: AssemblyOptions;
  readonly #ranges: readonly AssembledRange[];
  readonly #head: Buffer;
  /** Where the part begins that is being filled. */
  #tailAt: number;
  #tail: Buffer | undefined;
  #spare: Buffer[] = [];
  /** Bytes that the object has at least. */
  #end: number;
  readonly #parts = new Map<number, Promise<CompletedPart>>();
  /** How many parts behind the ranges are sealed. */
  #tailParts = 0;
  /** Parts that are under way. */
  readonly #pending = new Set<Promise<void>>();
  readonly #copies = pLimit(COPIES_AT_ONCE);
  readonly #uploads = pLimit(UPLOADS_AT_ONCE);
  readonly uploadId: string;
  readonly #multipart: Multipart;
  #failure: { readonly reason: unknown } | undefined;
  readonly #stop: AbortController;
  /** Of what is read to be sent. */
  readonly #signal: AbortSignal;
  #isOver = false;

  /** @param stop ends the requests of parts */
  private constructor(
    bucket: Bucket,
    multipart: Multipart,
    options: AssemblyOptions,
    { uploadId, stop }: { readonly uploadId: string; readonly stop: AbortController },
  ) {
    this.key = multipart.key;
    this.#bucket = bucket;
    this.#options = options;
    this.uploadId = uploadId;
    this.#stop = stop;
    this.#signal = anySignal(options.signal, stop.signal);
    this.#multipart = multipart;
    const bytes = options.ranges.reduce((sum, { length }) => sum + length, 0);
    const enough = Math.max(COPY_BYTES, Math.ceil(bytes / MOST_COPIES / MIB) * 2 * MIB);
    const mostBytes = Math.min(enough, LARGEST_PART);
    this.#ranges = options.ranges.flatMap((range) => partsOf(range, mostBytes));
    this.#head = Buffer.alloc(options.headBytes);
    this.#tailAt = options.headBytes + bytes;
    this.#end = bytes === 0 ? 0 : this.#tailAt;
    for (const [i, range] of this.#ranges.entries()) {
      const number = this.#firstRange + i;
      const part =
        "read" in range
          ? this.#uploads(() => this.#send(number, range))
          : this.#copies(() => this.#copy(number, range));
      this.#keep(number, part);
    }
  }

  /** Begins the upload, and has the store copy the ranges. */
  static async begin(bucket: Bucket, key: string, options: AssemblyOptions): Promise<ObjectAssembly> {
    const stop = new AbortController();
    const { signal, late } = options;
    const multipart = new Multipart(bucket, key, { signal, stop: stop.signal, late });
    return new ObjectAssembly(bucket, multipart, options, { uploadId: await multipart.begin(), stop });
  }

  /** Number of the part, from 1, that has the first range. */
  get #firstRange(): number {
    return this.#options.headBytes > 0 ? 2 : 1;
  }

  /**
   * Takes a copy of the bytes, and waits until there is room for more. Behind the ranges it is written from
   * front to back; what lies between becomes zeroes.
   * @throws the first failure of a part
   */
  async write(data: Uint8Array, position: number): Promise<void> {
    const { headBytes } = this.#options;
    const inHead = data.subarray(0, Math.max(0, headBytes - position));
    this.#head.set(inHead, Math.min(position, headBytes));
    for (let done = inHead.length; done < data.length; ) {
      const at = position + done;
      const tail = await this.#tailFor(at);
      const piece = data.subarray(done, done + this.#tailAt + tail.length - at);
      tail.set(piece, at - this.#tailAt);
      done += piece.length;
    }
    this.#end = Math.max(this.#end, position + data.length);
    this.#throwFailure();
  }

  /** The part behind the ranges that has this place. */
  async #tailFor(position: number): Promise<Buffer> {
    assert(position >= this.#tailAt, `byte ${position} of ${this.key} was uploaded already, or is copied`);
    const { tailPartBytes } = this.#options;
    while (position >= this.#tailAt + tailPartBytes) {
      this.#end = Math.max(this.#end, this.#tailAt + tailPartBytes);
      await this.#sealTail();
    }
    this.#tail ??= this.#spare.pop()?.fill(0) ?? Buffer.alloc(tailPartBytes);
    return this.#tail;
  }

  async #sealTail(): Promise<void> {
    const { tailPartBytes } = this.#options;
    const bytes = this.#tail ?? Buffer.alloc(tailPartBytes);
    const part = bytes.subarray(0, Math.min(tailPartBytes, this.#end - this.#tailAt));
    this.#tail = undefined;
    this.#tailAt += part.length;
    const number = this.#firstRange + this.#ranges.length + this.#tailParts;
    this.#tailParts += 1;
    const upload = this.#uploads(() => this.#upload(number, part)).finally(() => {
      this.#spare.push(bytes);
    });
    this.#keep(number, upload);
    // One is filled while the others are under way.
    while (this.#uploads.activeCount + this.#uploads.pendingCount >= UPLOADS_AT_ONCE && !this.#failure) {
      await Promise.race([...this.#pending]);
    }
  }

  #keep(number: number, part: Promise<CompletedPart>): void {
    this.#parts.set(number, part);
    const settled: Promise<void> = part.then(
      () => void this.#pending.delete(settled),
      (reason: unknown) => {
        this.#pending.delete(settled);
        this.#fail(reason);
      },
    );
    this.#pending.add(settled);
  }

  /** Ends what is under way, so that the failure is told at once, and has nothing else begun. */
  #fail(reason: unknown): void {
    this.#failure ??= { reason };
    this.#stop.abort(this.#failure.reason);
  }

  /** The object will have so many bytes. */
  truncate(length: number): void {
    this.#end = Math.max(this.#end, length);
  }

  /**
   * Waits until all parts of it are there. The object is not yet.
   * @throws the first failure of a part
   */
  async send(): Promise<void> {
    while (this.#end > this.#tailAt) {
      await this.#tailFor(this.#tailAt);
      await this.#sealTail();
    }
    await this.#settled();
    const { headBytes } = this.#options;
    if (headBytes > 0) this.#keep(1, this.#upload(1, this.#head.subarray(0, Math.min(headBytes, this.#end))));
    await this.#settled();
  }

  async #settled(): Promise<void> {
    await Promise.all(this.#pending);
    this.#throwFailure();
  }

  #throwFailure(): void {
    if (this.#failure) throw this.#failure.reason;
  }

  /**
   * Makes the object of its parts, also in place of one that has its key.
   * @param options what may end that; default: what ends the requests of parts
   * @throws {BackupError} `E_S3_FAILED`: the store has made another one of them
   */
  async complete(options?: AskOptions): Promise<Pick<StoredObject, "key" | "size" | "etag">> {
    const { bucket } = this.#bucket.address;
    const { key } = this;
    const numbers = [...this.#parts.keys()].sort((one, other) => one - other);
    const Parts = await Promise.all(
      numbers.map((number) => this.#parts.get(number) as Promise<CompletedPart>),
    );
    const before = await this.#bucket.find(key, options ?? this.#options);
    const isSure = await this.#multipart.complete(Parts, options);
    const found = await this.#bucket.find(key, options ?? this.#options);
    const isOurs =
      isSure || found?.etag === partsETag(Parts.map(({ ETag }) => ETag)) || found?.etag !== before?.etag;
    if (found?.size === this.#end && isOurs) {
      this.#isOver = true;
      return found;
    }
    const message = `s3://${bucket}/${key} was put together of parts with ${this.#end} bytes, and ${this.#bucket.store} has made ${isOurs ? (found?.size ?? "none") : "none"} of them: it does not copy what it is asked to`;
    throw new BackupError("E_S3_FAILED", message, { details: { key } });
  }

  async #copy(number: number, range: CopiedRange): Promise<CompletedPart> {
    this.#throwFailure();
    return await this.#multipart.copy(number, range);
  }

  async #send(number: number, { read, length }: WrittenRange): Promise<CompletedPart> {
    this.#throwFailure();
    const bytes = await read(this.#signal);
    assert(bytes.length === length, `part ${number} of ${this.key} has ${bytes.length} bytes`);
    return await this.#upload(number, bytes);
  }

  async #upload(number: number, bytes: Buffer): Promise<CompletedPart> {
    this.#throwFailure();
    return await this.#multipart.put(number, bytes);
  }

  /** Aborts what was not completed. If that fails, a later run's look finds it. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#fail(new BackupError("E_S3_FAILED", `the upload of ${this.key} was ended`));
    await Promise.all(this.#pending);
    await this.#multipart.abort();
  }
}
