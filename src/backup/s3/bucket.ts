/**
 * An S3-compatible object store, spoken to by AWS's SDK. Read this file first: a bucket is what all others
 * work on. Then upload.ts (an object that is written in parts), probe.ts (what a store can do), and
 * address.ts, client.ts, patience.ts and errors.ts below them.
 *
 * Nothing here knows what the objects hold, neither points nor images. What a store answers is not trusted:
 * it is compared with what was asked for, and bounded.
 */

import type { Readable } from "node:stream";
import {
  AbortMultipartUploadCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  type GetObjectCommandOutput,
  HeadObjectCommand,
  ListMultipartUploadsCommand,
  type ListMultipartUploadsOutput,
  type ListMultipartUploadsRequest,
  ListObjectsV2Command,
  ListPartsCommand,
  type ListPartsCommandOutput,
  PutObjectCommand,
  type S3Client,
} from "@aws-sdk/client-s3";
import pLimit from "p-limit";
import { BackupError, DamageError } from "../base/errors.js";
import type { S3Address } from "./address.js";
import { COPY_IDLE_MS, clientFor, endpointOf, lastingAddress } from "./client.js";
import { isAbsent, isUnmet, statusOf, storeError } from "./errors.js";
import { patiently } from "./patience.js";

/** A store that is away for longer fails the work. */
const PATIENCE_MS = 60_000;
/** Until something has answered, the address may be wrong. */
const FIRST_PATIENCE_MS = 2_500;
const DELETES_AT_ONCE = 16;
/** More answers to one question would be a store that never ends. */
const MOST_PAGES = 100_000;

export interface StoredObject {
  /** The whole key, with the address's prefix. */
  readonly key: string;
  /** Bytes. */
  readonly size: number;
  /** Changes whenever the object is replaced. Without quotation marks. */
  readonly etag: string;
  /** By the store's clock. */
  readonly modifiedAt: Date;
}

/** An upload that was begun and neither completed nor aborted. */
export interface PendingUpload {
  readonly key: string;
  readonly uploadId: string;
  /** By the store's clock. */
  readonly begunAt: Date;
}

/** A part that was uploaded. */
export interface UploadedPart {
  /** Bytes. */
  readonly size: number;
  /** Without quotation marks: where nothing is encrypted by a key of the customer, the MD5 of its bytes. */
  readonly etag: string;
}

export interface AskOptions {
  readonly signal?: AbortSignal | undefined;
}

export class Bucket implements Disposable {
  readonly address: S3Address;
  readonly client: S3Client;
  readonly #signal: AbortSignal | undefined;
  #patienceMs = FIRST_PATIENCE_MS;
  #copier: Promise<S3Client> | undefined;

  private constructor(address: S3Address, client: S3Client, signal: AbortSignal | undefined) {
    this.address = address;
    this.client = client;
    this.#signal = signal;
  }

  /**
   * Connects, and looks whether the bucket is there.
   * @param options.signal ends every request to it, also later ones
   * @throws {PreconditionError} there is no such bucket, or these credentials may not use it: `E_S3_BUCKET`,
   *   `E_S3_ACCESS`, `E_S3_CREDENTIALS`, `E_S3_REGION`, `E_S3_CLOCK`, `E_S3_TLS`
   * @throws {BackupError} `E_S3_UNREACHABLE`
   * @throws {UsageError} `E_S3_CA`
   */
  static async open(address: S3Address, options: AskOptions = {}): Promise<Bucket> {
    const bucket = new Bucket(address, await clientFor(address), options.signal);
    try {
      await bucket.#assertThere();
      bucket.#patienceMs = PATIENCE_MS;
      return bucket;
    } catch (error) {
      bucket.client.destroy();
      throw error;
    }
  }

  /** The same one for what must be done although its signal was given. It is closed with this one. */
  withoutSignal(): Bucket {
    const steady = new Bucket(this.address, this.client, undefined);
    steady.#patienceMs = this.#patienceMs;
    return steady;
  }

  /** The client for what a store may think about for minutes. */
  copier(): Promise<S3Client> {
    this.#copier ??= clientFor(this.address, COPY_IDLE_MS);
    return this.#copier;
  }

  /** For messages. */
  get store(): string {
    return endpointOf(this.address) ?? "AWS";
  }

  /** Its address with the endpoint that is in use: no credentials. */
  async lastingAddress(): Promise<S3Address> {
    return await lastingAddress(this.client, this.address);
  }

  /** What everything else needs too: an answer to it says what is wrong, as one without a body does not. */
  async #assertThere(): Promise<void> {
    const request = { Bucket: this.address.bucket, Prefix: this.address.prefix, MaxKeys: 1 };
    await this.ask("looking into", undefined, {}, (abortSignal) =>
      this.client.send(new ListObjectsV2Command(request), { abortSignal }),
    );
  }

  /**
   * Sends a request, again and again while it fails in a way that may pass.
   * @param action for messages, such as "reading"
   * @throws {BackupError} as `storeError` names it, or the signal's reason
   */
  async ask<T>(
    action: string,
    key: string | undefined,
    { signal }: AskOptions,
    request: (signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    // The SDK adds a listener for each request, and takes none away: a signal of its own lets go of them.
    const own = new AbortController();
    const both = [this.#signal, signal].filter((each) => each !== undefined);
    const abort = (): void => own.abort(both.find(({ aborted }) => aborted)?.reason);
    for (const each of both) {
      if (each.aborted) abort();
      each.addEventListener("abort", abort, { once: true });
    }
    try {
      return await patiently(() => request(own.signal), { patienceMs: this.#patienceMs, signal: own.signal });
    } catch (error) {
      own.signal.throwIfAborted();
      throw this.failure(error, action, key);
    } finally {
      for (const each of both) each.removeEventListener("abort", abort);
    }
  }

  /** A failure as an error of ours. */
  failure(error: unknown, action: string, key?: string): BackupError {
    return storeError(error, { store: this.store, bucket: this.address.bucket, key, action });
  }

  /**
   * The objects whose keys begin with `prefix`, sorted by key.
   * @param prefix with the address's prefix
   */
  async *list(prefix: string, options: AskOptions = {}): AsyncGenerator<StoredObject> {
    for await (const page of this.#pages(prefix, undefined, options)) {
      for (const { Key, Size, ETag, LastModified } of page.Contents ?? []) {
        if (Key === undefined || !Key.startsWith(prefix) || Size === undefined || !LastModified) {
          throw this.#nonsense("an object that was not asked for", prefix);
        }
        if (!bare(ETag)) {
          // Nobody could tell it from one that takes its place.
          throw this.#nonsense("an object without an ETag", Key);
        }
        yield { key: Key, size: Size, etag: bare(ETag), modifiedAt: LastModified };
      }
    }
  }

  /** The names between `prefix` and the next slash, sorted: what would be folders. */
  async folders(prefix: string, options: AskOptions = {}): Promise<string[]> {
    const names: string[] = [];
    for await (const page of this.#pages(prefix, "/", options)) {
      for (const { Prefix } of page.CommonPrefixes ?? []) {
        if (!Prefix?.startsWith(prefix) || !Prefix.endsWith("/")) {
          throw this.#nonsense("a folder that was not asked for", prefix);
        }
        names.push(Prefix.slice(prefix.length, -1));
      }
    }
    return names.sort();
  }

  async *#pages(prefix: string, Delimiter: string | undefined, options: AskOptions) {
    let token: string | undefined;
    for (let pages = 0; pages < MOST_PAGES; pages += 1) {
      const ContinuationToken = token;
      const page = await this.ask("listing", prefix, options, (abortSignal) =>
        this.client.send(
          new ListObjectsV2Command({
            Bucket: this.address.bucket,
            Prefix: prefix,
            Delimiter,
            ContinuationToken,
          }),
          { abortSignal },
        ),
      );
      yield page;
      if (!page.IsTruncated) return;
      token = page.NextContinuationToken;
      if (token === undefined || token === ContinuationToken) break;
    }
    throw this.#nonsense("a list without an end", prefix);
  }

  /** What is known of an object; undefined: there is none. */
  async find(key: string, options: AskOptions = {}): Promise<StoredObject | undefined> {
    return await this.#unlessAbsent(() => this.findThere(key, options));
  }

  /** What is known of an object. @throws {DamageError} `E_S3_MISSING` */
  async findThere(key: string, options: AskOptions = {}): Promise<StoredObject> {
    const found = await this.ask("looking at", key, options, (abortSignal) =>
      this.client.send(new HeadObjectCommand({ Bucket: this.address.bucket, Key: key }), { abortSignal }),
    );
    const { ContentLength, ETag, LastModified } = found;
    if (ContentLength === undefined || !LastModified) throw this.#nonsense("no length", key);
    return { key, size: ContentLength, etag: bare(ETag), modifiedAt: LastModified };
  }

  /**
   * What stays of an object when it is removed; undefined: nothing, the bucket keeps no versions.
   * @throws {DamageError} `E_S3_MISSING`
   */
  async keptVersion(
    key: string,
    options: AskOptions = {},
  ): Promise<{ readonly lockedUntil: Date | undefined; readonly isHeld: boolean } | undefined> {
    const found = await this.ask("looking at", key, options, (abortSignal) =>
      this.client.send(new HeadObjectCommand({ Bucket: this.address.bucket, Key: key }), { abortSignal }),
    );
    if (found.VersionId === undefined || found.VersionId === "null") return undefined;
    const until = found.ObjectLockRetainUntilDate;
    return {
      lockedUntil: until && until.getTime() > Date.now() ? until : undefined,
      isHeld: found.ObjectLockLegalHoldStatus === "ON",
    };
  }

  /**
   * The content of a small object; undefined: there is none.
   * @param most bytes that it may have
   * @param options.etag the object that is meant, as for `readRange`; default: the one that is there now
   * @throws {DamageError} `E_S3_TOO_LARGE`: it is longer; `E_S3_CHANGED`: it was replaced
   */
  async get(
    key: string,
    most: number,
    { etag, ...options }: AskOptions & { readonly etag?: string | undefined } = {},
  ): Promise<{ readonly bytes: Buffer; readonly etag: string } | undefined> {
    return await this.#unlessAbsent(() =>
      this.ask("reading", key, options, async (abortSignal) => {
        const { Body, ContentLength, ETag } = await this.#getObject({ Key: key, IfMatch: etag }, abortSignal);
        const body = Body as Readable;
        if (ContentLength === undefined || ContentLength > most) {
          body.destroy();
          const message = `s3://${this.address.bucket}/${key} has ${ContentLength} bytes, and at most ${most} make sense`;
          throw new DamageError("E_S3_TOO_LARGE", message, { details: { key } });
        }
        const bytes = Buffer.alloc(ContentLength);
        await this.#fill(bytes, body, key);
        return { bytes, etag: bare(ETag) };
      }),
    );
  }

  /**
   * Fills `target` with the object's bytes from `position`.
   * @param options.etag the object that is meant: another one that has taken its place is damage
   * @throws {DamageError} `E_S3_CHANGED`: it was replaced; `E_S3_MISSING`
   * @throws {BackupError} `E_S3_RANGE`: the store sent other bytes than it was asked for
   */
  async readRange(
    key: string,
    target: Uint8Array,
    position: number,
    { etag, ...options }: AskOptions & { readonly etag: string },
  ): Promise<void> {
    if (target.length === 0) return;
    const last = position + target.length - 1;
    const request = { Key: key, Range: `bytes=${position}-${last}`, IfMatch: etag };
    await this.ask("reading", key, options, async (abortSignal) => {
      try {
        const answer = await this.#getObject(request, abortSignal);
        const body = answer.Body as Readable;
        const range = /^bytes (\d+)-(\d+)\//.exec(answer.ContentRange ?? "");
        if (Number(range?.[1]) !== position || Number(range?.[2]) !== last) {
          body.destroy();
          const message = `s3://${this.address.bucket}/${key}: bytes ${position} to ${last} were asked for, and the store sent ${answer.ContentRange ?? "everything"}: it is no store for a repository, or the object is shorter than its manifest says`;
          throw new DamageError("E_S3_RANGE", message, { details: { key } });
        }
        await this.#fill(target, body, key);
      } catch (error) {
        if (statusOf(error) === 416) {
          const message = `s3://${this.address.bucket}/${key} ends before byte ${last}`;
          throw new DamageError("E_S3_RANGE", message, { cause: error, details: { key } });
        }
        throw error;
      }
    });
  }

  /**
   * Asks for an object, or for bytes of it. Not every store knows `If-Match`, so the answer is compared too.
   * @throws {DamageError} `E_S3_CHANGED`
   */
  async #getObject(
    {
      Key,
      IfMatch,
      Range,
    }: { readonly Key: string; readonly IfMatch?: string | undefined; readonly Range?: string },
    abortSignal: AbortSignal,
  ): Promise<GetObjectCommandOutput> {
    const changed = (cause?: unknown): DamageError => {
      const message = `s3://${this.address.bucket}/${Key} was replaced while it was read: read it again`;
      return new DamageError("E_S3_CHANGED", message, { cause, details: { key: Key } });
    };
    const request = { Bucket: this.address.bucket, Key, IfMatch, Range };
    let answer: GetObjectCommandOutput;
    try {
      answer = await this.client.send(new GetObjectCommand(request), { abortSignal });
    } catch (error) {
      throw isUnmet(error) ? changed(error) : error;
    }
    if (IfMatch === undefined || bare(answer.ETag) === IfMatch) return answer;
    (answer.Body as Readable).destroy();
    throw changed();
  }

  /** @throws {BackupError} `E_S3_TRUNCATED`, which is asked again */
  async #fill(target: Uint8Array, body: Readable, key: string): Promise<void> {
    let filled = 0;
    const truncated = (cause?: unknown): BackupError => {
      const message = `reading s3://${this.address.bucket}/${key}: the store sent ${filled} of ${target.length} bytes and hung up: look at the store and the network`;
      return new BackupError("E_S3_TRUNCATED", message, { cause, details: { key } });
    };
    try {
      for await (const piece of body as AsyncIterable<Buffer>) {
        const room = piece.subarray(0, target.length - filled);
        target.set(room, filled);
        filled += room.length;
        if (room.length < piece.length) throw this.#nonsense("more bytes than were asked for", key);
      }
    } catch (error) {
      if (error instanceof BackupError) throw error;
      throw truncated(error);
    }
    if (filled < target.length) throw truncated();
  }

  /**
   * Creates an object unless one has its key.
   * @returns whether these bytes are there now
   */
  async putIfAbsent(key: string, bytes: Uint8Array, options: AskOptions = {}): Promise<boolean> {
    return (await this.#put(key, bytes, { IfNoneMatch: "*" }, options)) !== undefined;
  }

  /**
   * Replaces an object if it is still the one with this ETag.
   * @returns the new ETag; undefined: another one has taken its place, or it is gone
   */
  async replaceIfUnchanged(
    key: string,
    bytes: Uint8Array,
    { etag, ...options }: AskOptions & { readonly etag: string },
  ): Promise<string | undefined> {
    return await this.#put(key, bytes, { IfMatch: etag }, options);
  }

  /** Creates or replaces an object. @returns its ETag */
  async put(key: string, bytes: Uint8Array, options: AskOptions = {}): Promise<string> {
    return (await this.#put(key, bytes, {}, options)) ?? "";
  }

  async #put(
    key: string,
    bytes: Uint8Array,
    condition: { readonly IfNoneMatch?: string; readonly IfMatch?: string },
    options: AskOptions,
  ): Promise<string | undefined> {
    try {
      return await this.ask("writing", key, options, async (abortSignal) => {
        const request = { Bucket: this.address.bucket, Key: key, Body: bytes, ...condition };
        return bare((await this.client.send(new PutObjectCommand(request), { abortSignal })).ETag);
      });
    } catch (error) {
      const { cause } = error as Error;
      if (!isUnmet(cause) && !(condition.IfMatch !== undefined && isAbsent(cause))) throw error;
      // The answer to an earlier try may have been lost after it had succeeded.
      const found = await this.get(key, bytes.length, options).catch((failure: unknown) => {
        if (failure instanceof DamageError) return undefined;
        throw failure;
      });
      return found?.bytes.equals(bytes) ? found.etag : undefined;
    }
  }

  /** Removes objects. They may be missing. */
  async remove(keys: readonly string[], options: AskOptions = {}): Promise<void> {
    const limit = pLimit(DELETES_AT_ONCE);
    await Promise.all(
      keys.map((key) =>
        limit(() =>
          this.ask("removing", key, options, (abortSignal) =>
            this.client.send(new DeleteObjectCommand({ Bucket: this.address.bucket, Key: key }), {
              abortSignal,
            }),
          ),
        ),
      ),
    );
  }

  /** Uploads below a prefix that were begun and neither completed nor aborted. */
  async *pendingUploads(prefix: string, options: AskOptions = {}): AsyncGenerator<PendingUpload> {
    let KeyMarker: string | undefined;
    let UploadIdMarker: string | undefined;
    for (let pages = 0; pages < MOST_PAGES; pages += 1) {
      const request: ListMultipartUploadsRequest = {
        Bucket: this.address.bucket,
        Prefix: prefix,
        KeyMarker,
        UploadIdMarker,
      };
      const page: ListMultipartUploadsOutput = await this.ask(
        "listing uploads of",
        prefix,
        options,
        (abortSignal) => this.client.send(new ListMultipartUploadsCommand(request), { abortSignal }),
      );
      for (const { Key, UploadId, Initiated } of page.Uploads ?? []) {
        if (!Key?.startsWith(prefix) || UploadId === undefined || !Initiated) {
          throw this.#nonsense("an upload that was not asked for", prefix);
        }
        yield { key: Key, uploadId: UploadId, begunAt: Initiated };
      }
      if (!page.IsTruncated) return;
      KeyMarker = page.NextKeyMarker;
      UploadIdMarker = page.NextUploadIdMarker;
    }
    throw this.#nonsense("a list of uploads without an end", prefix);
  }

  /** The parts of an upload that the store has, by their numbers, from 1. None: the upload may be gone. */
  async uploadedParts(
    { key, uploadId }: Pick<PendingUpload, "key" | "uploadId">,
    options: AskOptions = {},
  ): Promise<ReadonlyMap<number, UploadedPart>> {
    const parts = new Map<number, UploadedPart>();
    let PartNumberMarker: string | undefined;
    for (let pages = 0; pages < MOST_PAGES; pages += 1) {
      const request = { Bucket: this.address.bucket, Key: key, UploadId: uploadId, PartNumberMarker };
      let page: ListPartsCommandOutput;
      try {
        page = await this.ask("listing parts of", key, options, (abortSignal) =>
          this.client.send(new ListPartsCommand(request), { abortSignal }),
        );
      } catch (error) {
        if (statusOf((error as Error).cause) === 404) return new Map();
        throw error;
      }
      for (const { PartNumber, Size, ETag } of page.Parts ?? []) {
        if (PartNumber !== undefined && Size !== undefined) {
          parts.set(PartNumber, { size: Size, etag: bare(ETag) });
        }
      }
      if (!page.IsTruncated || page.NextPartNumberMarker === PartNumberMarker) return parts;
      PartNumberMarker = page.NextPartNumberMarker;
    }
    throw this.#nonsense("a list of parts without an end", key);
  }

  /** Aborts an upload, so that the store drops its parts. It may be gone. */
  async abortUpload(
    { key, uploadId }: Omit<PendingUpload, "begunAt">,
    options: AskOptions = {},
  ): Promise<void> {
    try {
      await this.ask("aborting the upload of", key, options, (abortSignal) =>
        this.client.send(
          new AbortMultipartUploadCommand({ Bucket: this.address.bucket, Key: key, UploadId: uploadId }),
          { abortSignal },
        ),
      );
    } catch (error) {
      if (statusOf((error as Error).cause) !== 404) throw error;
    }
  }

  async #unlessAbsent<T>(look: () => Promise<T>): Promise<T | undefined> {
    try {
      return await look();
    } catch (error) {
      if (error instanceof DamageError && error.code === "E_S3_MISSING") return undefined;
      throw error;
    }
  }

  #nonsense(what: string, key: string): DamageError {
    const message = `${this.store} answered with ${what} (s3://${this.address.bucket}/${key}): it is no store for a repository`;
    return new DamageError("E_S3_NONSENSE", message, { details: { key } });
  }

  close(): void {
    this.client.destroy();
    this.#copier?.then(
      (copier) => copier.destroy(),
      () => undefined,
    );
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** An ETag without quotation marks: some stores compare it with them, some without. */
function bare(etag: string | undefined): string {
  return (etag ?? "").replaceAll('"', "");
}
