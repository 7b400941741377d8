/**
 * An S3-compatible object store, spoken to by AWS's SDK. Read this file first: a bucket is what all others
 * work on. Then object-reads.ts with prepared-gets.ts, which read, and listing.ts. upload.ts writes an object
 * in parts (part-layout.ts, filled-buffer.ts, multipart.ts; composed-layout.ts, part-object.ts, copies-parts.ts
 * and copied-bounds.ts for a very large one), and assembly.ts makes one of ranges of others. probe.ts finds
 * out what a store can do (abilities.ts), lease.ts with lease-object.ts lets one write, lifecycle.ts has old
 * uploads ended. Below them all are asker.ts, address.ts, client.ts with request-handler.ts, opening.ts,
 * turns.ts, patience.ts, etags.ts and errors.ts.
 *
 * Nothing here knows what the objects hold, neither points nor images. What a store answers is not trusted:
 * it is compared with what was asked for, and bounded.
 */

import { setMaxListeners } from "node:events";
import {
  AbortMultipartUploadCommand,
  DeleteObjectCommand,
  HeadObjectCommand,
  ListObjectsV2Command,
  PutObjectCommand,
  type S3Client,
} from "@aws-sdk/client-s3";
import { type BackupError, DamageError } from "../base/errors.js";
import { allOrNone } from "../base/in-parallel.js";
import { AWS_ENDPOINT, type S3Address } from "./address.js";
import type { Asker, AskOptions, PendingUpload, StoredObject, UploadedPart } from "./asker.js";
import { clientFor, copyIdleMs, lastingAddress, MOST_CONNECTIONS } from "./client.js";
import { isAbsent, isAway, isUnmet, reasonOf, statusOf, storeError } from "./errors.js";
import { bareETag } from "./etags.js";
import { listFolders, listObjects, listParts, listUploads } from "./listing.js";
import { ObjectReads } from "./object-reads.js";
import { hasAnswered, Opening, waitedInVain } from "./opening.js";
import { patiently } from "./patience.js";
import { Turns } from "./turns.js";

/** A store that is away for longer fails the work. */
const PATIENCE_MS = 60_000;
/** A host whose name nobody knows is a wrong address, unless something there has answered before. */
const UNKNOWN_HOST_PATIENCE_MS = 2_500;
const DELETES_AT_ONCE = 16;

interface OpenOptions extends AskOptions {
  /** How long a store that is away is waited for; default: a minute. */
  readonly patienceMs?: number | undefined;
}

interface Shared {
  /** Whether something has answered: then the address is right. */
  hasAnswered: boolean;
  /** By the time after which a silent connection is given up. */
  readonly copiers: Map<number, Promise<S3Client>>;
  readonly turns: Turns;
}

export class Bucket implements Asker, Disposable {
  /** With the endpoint in use. */
  readonly address: S3Address;
  readonly client: S3Client;
  readonly #signal: AbortSignal | undefined;
  readonly #reads: ObjectReads;
  readonly #patienceMs: number;
  /** What this one has in common with those that have another signal. */
  readonly #shared: Shared;

  private constructor(
    address: S3Address,
    client: S3Client,
    { signal, patienceMs }: OpenOptions,
    shared: Shared = { hasAnswered: false, copiers: new Map(), turns: new Turns(MOST_CONNECTIONS) },
  ) {
    this.address = address;
    this.client = client;
    this.#shared = shared;
    this.#signal = signal;
    this.#patienceMs = patienceMs ?? PATIENCE_MS;
    this.#reads = new ObjectReads(this);
  }

  /**
   * Connects, and looks whether the bucket is there. If the store does not answer it is waited for, since it
   * may be starting, and that is told (`tellWaiting`).
   * @param options.signal ends every request to it, also later ones
   * @throws {PreconditionError} there is no such bucket, or these credentials may not use it: `E_S3_BUCKET`,
   *   `E_S3_ACCESS`, `E_S3_CREDENTIALS`, `E_S3_REGION`, `E_S3_CLOCK`, `E_S3_TLS`
   * @throws {BackupError} `E_S3_UNREACHABLE`
   * @throws {UsageError} `E_S3_CA`, `E_S3_ADDRESS`
   */
  static async open(asked: S3Address, options: OpenOptions = {}): Promise<Bucket> {
    const address = await lastingAddress(asked);
    const bucket = new Bucket(address, await clientFor(address), options);
    try {
      await bucket.#assertThere();
      return bucket;
    } catch (error) {
      bucket.client.destroy();
      throw error;
    }
  }

  /**
   * The same one with another signal or none, for what must be done although its own was given. It is closed
   * with this one.
   */
  withSignal(signal: AbortSignal | undefined): Bucket {
    return new Bucket(this.address, this.client, { signal, patienceMs: this.#patienceMs }, this.#shared);
  }

  /** Whether its signal has ended all requests to it. */
  get isEnded(): boolean {
    return this.#signal?.aborted ?? false;
  }

  /** The client for a copy, which a store may think about for minutes. @param bytes that are copied */
  copier(bytes: number): Promise<S3Client> {
    const idleMs = copyIdleMs(bytes);
    const { copiers } = this.#shared;
    const copier = copiers.get(idleMs) ?? clientFor(this.address, idleMs);
    copiers.set(idleMs, copier);
    return copier;
  }

  /** For messages: no credentials. */
  get store(): string {
    const { endpoint = AWS_ENDPOINT } = this.address;
    return endpoint === AWS_ENDPOINT ? "AWS" : endpoint;
  }

  /** What everything else needs too: an answer to it says what is wrong, as one without a body does not. */
  async #assertThere(): Promise<void> {
    const request = { Bucket: this.address.bucket, Prefix: this.address.prefix, MaxKeys: 1 };
    const action = "looking into";
    const failure = (cause: unknown): BackupError => this.failure(cause, action);
    using opening = new Opening(this.store, { patienceMs: this.#patienceMs, failure });
    await this.ask(action, undefined, { signal: opening.late }, (abortSignal) =>
      opening.watch(this.client.send(new ListObjectsV2Command(request), { abortSignal })),
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
      // Each request that is under way has one there, so many are not a leak.
      setMaxListeners(0, each);
      each.addEventListener("abort", abort, { once: true });
    }
    try {
      const answer = await patiently(() => this.#shared.turns.send(request, own.signal), {
        patienceMs: (error) => this.#patienceFor(error),
        signal: own.signal,
      });
      this.#shared.hasAnswered = true;
      hasAnswered(this.store);
      return answer;
    } catch (error) {
      own.signal.throwIfAborted();
      // A name that nobody knows was not waited for.
      if (isAway(error) && reasonOf(error) !== "ENOTFOUND") waitedInVain(this.store);
      throw this.failure(error, action, key);
    } finally {
      for (const each of both) each.removeEventListener("abort", abort);
    }
  }

  #patienceFor(error: unknown): number {
    const status = statusOf(error);
    // A clock that is wrong is corrected by one answer, or never.
    if (status !== undefined && status !== 403) this.#shared.hasAnswered = true;
    const isUnknown = !this.#shared.hasAnswered && (status !== undefined || reasonOf(error) === "ENOTFOUND");
    return isUnknown ? Math.min(UNKNOWN_HOST_PATIENCE_MS, this.#patienceMs) : this.#patienceMs;
  }

  /** A failure as an error of ours. */
  failure(error: unknown, action: string, key?: string): BackupError {
    return storeError(error, { store: this.store, bucket: this.address.bucket, key, action });
  }

  /**
   * The objects whose keys begin with `prefix`, sorted by key.
   * @param prefix with the address's prefix
   */
  list(prefix: string, options: AskOptions = {}): AsyncGenerator<StoredObject> {
    return listObjects(this, prefix, options);
  }

  /** The names between `prefix` and the next slash, sorted: what would be folders. */
  async folders(prefix: string, options: AskOptions = {}): Promise<string[]> {
    return await listFolders(this, prefix, options);
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
    if (ContentLength === undefined || !LastModified) throw this.nonsense("no length", key);
    return { key, size: ContentLength, etag: bareETag(ETag), modifiedAt: LastModified };
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
   * The content of a small object, as `ObjectReads` gets it; undefined: there is none.
   * @throws {DamageError} `E_S3_TOO_LARGE`: it is longer than `most` bytes; `E_S3_CHANGED`
   */
  async get(
    key: string,
    most: number,
    options: AskOptions & { readonly etag?: string | undefined } = {},
  ): Promise<{ readonly bytes: Buffer; readonly etag: string } | undefined> {
    return await this.#unlessAbsent(() => this.#reads.get(key, most, options));
  }

  /**
   * Fills `target` with the object's bytes from `position`, as `ObjectReads` does.
   * @param options.etag the object that is meant: another one that has taken its place is damage
   * @throws {DamageError} `E_S3_CHANGED`; `E_S3_MISSING`; `E_S3_RANGE`: other bytes were sent
   */
  async readRange(
    key: string,
    target: Uint8Array,
    position: number,
    options: AskOptions & { readonly etag: string },
  ): Promise<void> {
    await this.#reads.readRange(key, target, position, options);
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
        return bareETag((await this.client.send(new PutObjectCommand(request), { abortSignal })).ETag);
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
    const removeOne = async (Key: string, signal: AbortSignal): Promise<void> => {
      const command = new DeleteObjectCommand({ Bucket: this.address.bucket, Key });
      await this.ask("removing", Key, { signal }, (abortSignal) =>
        this.client.send(command, { abortSignal }),
      );
    };
    await allOrNone(keys, DELETES_AT_ONCE, options.signal, removeOne);
  }

  /** Uploads below a prefix that were begun and neither completed nor aborted. */
  pendingUploads(prefix: string, options: AskOptions = {}): AsyncGenerator<PendingUpload> {
    return listUploads(this, prefix, options);
  }

  /** The parts of an upload that the store has, by their numbers, from 1. None: the upload may be gone. */
  async uploadedParts(
    upload: Pick<PendingUpload, "key" | "uploadId">,
    options: AskOptions = {},
  ): Promise<ReadonlyMap<number, UploadedPart>> {
    return await listParts(this, upload, options);
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

  /** A store's answer that makes no sense. @param what it answered with */
  nonsense(what: string, key: string): DamageError {
    const message = `${this.store} answered with ${what} (s3://${this.address.bucket}/${key}): it is no store for a repository`;
    return new DamageError("E_S3_NONSENSE", message, { details: { key } });
  }

  close(): void {
    this.client.destroy();
    for (const copier of this.#shared.copiers.values()) {
      copier.then(
        (client) => client.destroy(),
        () => undefined,
      );
    }
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
