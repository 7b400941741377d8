import { setTimeout as sleep } from "node:timers/promises";
import {
  type CompletedPart,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  UploadPartCommand,
  UploadPartCopyCommand,
} from "@aws-sdk/client-s3";
import { anySignal } from "../../nbd/index.js";
import { BackupError } from "../base/errors.js";
import { GRACE_MS, Grace } from "../base/grace.js";
import type { AskOptions } from "./asker.js";
import type { Bucket } from "./bucket.js";
import { COPY_IDLE_MS, copyIdleMs } from "./client.js";
import { isAbsent, reasonOf } from "./errors.js";

/**
 * In milliseconds: after each of these pauses it is looked whether parts have arrived since an upload was
 * aborted.
 */
const LOOKS_AFTER_MS = [250, 500, 1_000, 2_000];
/** How long an upload is tried to be aborted, and looked after: a backup job waits for it. */
const ABORT_MS = 10_000;
/** The same where somebody has given a signal: the store may be why. */
const CLEAR_MS = 5_000;

/** What becomes of an upload after a signal. */
export interface AfterSignal {
  /** Ends what has to be done then, where there is more than this to do. */
  readonly late?: AbortSignal | undefined;
  /** Whether the upload stays then: the next run goes on with it. */
  readonly stays?: boolean | undefined;
}

/** Bytes of another object of the bucket, which the store copies by itself. */
export interface CopiedRange {
  readonly key: string;
  /** Of the object that is meant, as it was listed. */
  readonly etag: string;
  readonly start: number;
  readonly length: number;
  /** Whether they are all bytes of the object. AWS copies no ranges of an object of at most 5 MB. */
  readonly isWhole?: boolean;
}

/** The requests by which an object is made of parts. It is no object before `complete`. */
export class Multipart {
  readonly key: string;
  readonly #bucket: Bucket;
  readonly #options: AskOptions;
  /** Those of parts. */
  readonly #ofParts: AskOptions;
  #id: Promise<string> | undefined;
  readonly #late: AbortSignal | undefined;
  readonly #stays: boolean;
  /** Whether a request of a part has failed: it may be on its way still. */
  #isPartOnItsWay = false;
  /** Whether nobody knows if the object is made: then the next run looks. */
  #isLeft = false;

  /**
   * @param options.stop ends the requests of parts, and lets no other one begin: one of them has failed
   * @param left the id of an upload that was begun; default: a new one, with the first part
   */
  constructor(
    bucket: Bucket,
    key: string,
    { stop, late, stays = false, ...options }: AskOptions & AfterSignal & { readonly stop?: AbortSignal },
    left?: string,
  ) {
    this.key = key;
    this.#bucket = bucket;
    this.#options = options;
    this.#late = late;
    this.#stays = stays;
    this.#ofParts = stop ? { signal: anySignal(options.signal, stop) } : options;
    if (left !== undefined) this.#id = Promise.resolve(left);
  }

  /** Begins the upload if nobody has. */
  begin(): Promise<string> {
    this.#id ??= this.#create();
    return this.#id;
  }

  async #create(): Promise<string> {
    const request = { Bucket: this.#bucket.address.bucket, Key: this.key };
    const { UploadId } = await this.#bucket.ask("beginning", this.key, this.#options, (abortSignal) =>
      this.#bucket.client.send(new CreateMultipartUploadCommand(request), { abortSignal }),
    );
    if (UploadId !== undefined) return UploadId;
    throw new BackupError("E_S3_FAILED", `${this.#bucket.store} began an upload without an id`);
  }

  /** @param PartNumber from 1 */
  async put(PartNumber: number, Body: Uint8Array): Promise<CompletedPart> {
    const request = { ...(await this.#part(PartNumber)), Body };
    const { ETag } = await this.#askPart("writing", this.key, (abortSignal) =>
      this.#bucket.client.send(new UploadPartCommand(request), { abortSignal }),
    );
    return { PartNumber, ETag: this.#told(ETag) };
  }

  async #askPart<T>(action: string, key: string, request: (signal: AbortSignal) => Promise<T>): Promise<T> {
    try {
      return await this.#bucket.ask(action, key, this.#ofParts, request);
    } catch (error) {
      this.#isPartOnItsWay = true;
      throw error;
    }
  }

  /**
   * Has the store copy a part. That of a large one is waited for once only: the store would begin anew, and
   * have the same time again.
   */
  async copy(PartNumber: number, range: CopiedRange): Promise<CompletedPart> {
    const { key, etag, start, length, isWhole } = range;
    const { bucket } = this.#bucket.address;
    const request = {
      ...(await this.#part(PartNumber)),
      CopySource: [bucket, ...key.split("/")].map(encodeURIComponent).join("/"),
      CopySourceRange: isWhole ? undefined : `bytes=${start}-${start + length - 1}`,
      CopySourceIfMatch: etag,
    };
    const copier = await this.#bucket.copier(length);
    const { CopyPartResult } = await this.#askPart("copying", key, async (abortSignal) => {
      const begunAt = performance.now();
      try {
        return await copier.send(new UploadPartCopyCommand(request), { abortSignal });
      } catch (error) {
        // A connection that was never there is given up after seconds, and tried again.
        const isSilent = reasonOf(error) === "TimeoutError" && performance.now() - begunAt >= COPY_IDLE_MS;
        const isLong = copyIdleMs(length) > COPY_IDLE_MS;
        throw isSilent && isLong ? this.#bucket.failure(error, "copying", key) : error;
      }
    });
    return { PartNumber, ETag: this.#told(CopyPartResult?.ETag) };
  }

  async #part(PartNumber: number) {
    const { bucket } = this.#bucket.address;
    return { Bucket: bucket, Key: this.key, UploadId: await this.begin(), PartNumber };
  }

  #told(etag: string | undefined): string {
    if (etag !== undefined) return etag;
    throw new BackupError("E_S3_FAILED", `${this.#bucket.store} took a part of ${this.key} without an ETag`);
  }

  /**
   * Makes the object of its parts, also in place of one that has its key. When it is under way, a signal ends
   * it only 10 s later, or with `late`: the object could appear after what was left had been removed, and
   * nobody would look for it. Nothing is removed any more then: a lease is over at the same time.
   * @param options.signal keeps it from beginning; default: that of parts
   * @returns whether the store says so; otherwise there is no such upload: an earlier try may have succeeded,
   *   and its answer been lost
   */
  async complete(Parts: CompletedPart[], { signal }: AskOptions = this.#ofParts): Promise<boolean> {
    const { bucket } = this.#bucket.address;
    const UploadId = await this.begin();
    const request = { Bucket: bucket, Key: this.key, UploadId, MultipartUpload: { Parts } };
    signal?.throwIfAborted();
    using grace = new Grace(this.#options.signal, GRACE_MS);
    const late = anySignal(grace.late, this.#late);
    try {
      await this.#bucket.ask("completing", this.key, { signal: late }, (abortSignal) =>
        this.#bucket.client.send(new CompleteMultipartUploadCommand(request), { abortSignal }),
      );
      return true;
    } catch (error) {
      this.#isLeft = late.aborted;
      const { cause } = error as Error;
      if (!isAbsent(cause) && reasonOf(cause) !== "NoSuchUpload") throw error;
      return false;
    }
  }

  /**
   * Ends an upload that was begun, so that the store drops its parts. Parts that were on their way may arrive
   * afterwards: then it is aborted again, for some seconds. Those that arrive later still take room until a
   * rule of the bucket ends old uploads (lifecycle.ts). If this fails, a later run's look finds the upload.
   * It takes 10 s at most, and 5 s after a signal.
   */
  async abort(): Promise<void> {
    const uploadId = await this.#id?.catch(() => undefined);
    if (uploadId === undefined || this.#isLeft) return;
    const upload = { key: this.key, uploadId };
    const isAborted = this.#bucket.isEnded || (this.#options.signal?.aborted ?? false);
    if (isAborted && this.#stays) return;
    const bucket = this.#bucket.withSignal(undefined);
    try {
      const signal = anySignal(AbortSignal.timeout(isAborted ? CLEAR_MS : ABORT_MS), this.#late);
      await bucket.abortUpload(upload, { signal });
      for (const pauseMs of this.#isPartOnItsWay ? LOOKS_AFTER_MS : []) {
        await sleep(pauseMs, undefined, { signal });
        // Credentials that may write need not be allowed to look.
        const parts = await bucket.uploadedParts(upload, { signal }).catch(() => undefined);
        if (parts?.size === 0) return;
        await bucket.abortUpload(upload, { signal });
      }
    } catch {
      // The failure that has led here is told.
    }
  }
}
