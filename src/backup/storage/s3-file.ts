import { DamageError } from "../base/errors.js";
import { fillFrom } from "../image/fill-file.js";
import type { ReadableFile, RemoteFile, RemoteOptions } from "../image/readable-file.js";
import type { StoredObject } from "../s3/asker.js";
import type { Bucket } from "../s3/bucket.js";
import type { KeptPieces } from "./kept-pieces.js";
import { type Fetch, ReadAhead } from "./read-ahead.js";

/** An object of a bucket as a file. It is read as it was listed: another one in its place is damage. */
export class S3Place implements RemoteFile {
  readonly path: string;
  readonly #bucket: Bucket;
  readonly #object: StoredObject | undefined;
  readonly #kept: KeptPieces;

  /** @param object undefined: there is none of that path */
  constructor(path: string, bucket: Bucket, object: StoredObject | undefined, kept: KeptPieces) {
    this.path = path;
    this.#bucket = bucket;
    this.#object = object;
    this.#kept = kept;
  }

  async open(options: RemoteOptions = {}): Promise<ReadableFile> {
    if (this.#object) return new S3File(this.path, this.#bucket, this.#object, this.#kept, options);
    throw new DamageError("E_S3_MISSING", `${this.path} is missing`, { details: { path: this.path } });
  }
}

class S3File implements ReadableFile {
  readonly path: string;
  readonly #size: number;
  readonly #fetch: Fetch;
  /** Undefined: each read is a request. */
  readonly #ahead: ReadAhead | undefined;

  constructor(
    path: string,
    bucket: Bucket,
    { key, size, etag }: StoredObject,
    kept: KeptPieces,
    { signal, exact = false }: RemoteOptions,
  ) {
    this.path = path;
    this.#size = size;
    this.#fetch = (target, position) => bucket.readRange(key, target, position, { etag, signal });
    this.#ahead = exact ? undefined : new ReadAhead(size, this.#fetch, kept);
  }

  async size(): Promise<number> {
    return this.#size;
  }

  async read(target: Uint8Array, position: number): Promise<number> {
    if (this.#ahead) return await this.#ahead.read(target, position);
    const length = Math.max(0, Math.min(target.length, this.#size - position));
    await this.#fetch(target.subarray(0, length), position);
    return length;
  }

  async fill(target: Uint8Array, position: number, end: number): Promise<void> {
    await fillFrom(this, target, position, end);
  }

  async close(): Promise<void> {
    this.#ahead?.forget();
  }
}
