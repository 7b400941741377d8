import {
  type CompletedPart,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  UploadPartCommand,
  UploadPartCopyCommand,
} from "@aws-sdk/client-s3";
import { anySignal } from "../../nbd/index.js";
import { BackupError } from "../base/errors.js";
import type { AskOptions, Bucket } from "./bucket.js";
import { isAbsent, reasonOf } from "./errors.js";

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

  /**
   * @param options.stop ends the requests of parts, and lets no other one begin: one of them has failed
   * @param left the id of an upload that was begun; default: a new one, with the first part
   */
  constructor(
    bucket: Bucket,
    key: string,
    { stop, ...options }: AskOptions & { readonly stop?: AbortSignal },
    left?: string,
  ) {
    this.key = key;
    this.#bucket = bucket;
    this.#options = options;
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
    const { ETag } = await this.#bucket.ask("writing", this.key, this.#ofParts, (abortSignal) =>
      this.#bucket.client.send(new UploadPartCommand(request), { abortSignal }),
    );
    return { PartNumber, ETag: this.#told(ETag) };
  }

  /** Has the store copy a part. */
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
    const { CopyPartResult } = await this.#bucket.ask("copying", key, this.#ofParts, (abortSignal) =>
      copier.send(new UploadPartCopyCommand(request), { abortSignal }),
    );
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
   * Makes the object of its parts, also in place of one that has its key.
   * @returns whether the store says so; otherwise there is no such upload: an earlier try may have succeeded,
   *   and its answer been lost
   */
  async complete(Parts: CompletedPart[]): Promise<boolean> {
    const { bucket } = this.#bucket.address;
    const UploadId = await this.begin();
    const request = { Bucket: bucket, Key: this.key, UploadId, MultipartUpload: { Parts } };
    try {
      await this.#bucket.ask("completing", this.key, this.#options, (abortSignal) =>
        this.#bucket.client.send(new CompleteMultipartUploadCommand(request), { abortSignal }),
      );
      return true;
    } catch (error) {
      const { cause } = error as Error;
      if (!isAbsent(cause) && reasonOf(cause) !== "NoSuchUpload") throw error;
      return false;
    }
  }

  /** Ends an upload that was begun, so that the store drops its parts. A later run's look finds it otherwise. */
  async abort(): Promise<void> {
    const uploadId = await this.#id?.catch(() => undefined);
    if (uploadId === undefined) return;
    await this.#bucket.abortUpload({ key: this.key, uploadId }).catch(() => undefined);
  }
}
