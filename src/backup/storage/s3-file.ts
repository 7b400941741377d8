import { DamageError } from "../base/errors.js";
import { fillFrom } from "../image/fill-file.js";
import type { ReadOptions } from "../image/image-file.js";
import type { ReadableFile, RemoteFile } from "../image/readable-file.js";
import type { Bucket, StoredObject } from "../s3/bucket.js";
import type { KeptPieces } from "./kept-pieces.js";
import { ReadAhead } from "./read-ahead.js";

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

  async open(options: Pick<ReadOptions, "signal"> = {}): Promise<ReadableFile> {
    if (this.#object) return new S3File(this.path, this.#bucket, this.#object, this.#kept, options);
    throw new DamageError("E_S3_MISSING", `${this.path} is missing`, { details: { path: this.path } });
  }
}

class S3File implements ReadableFile {
  readonly path: string;
  readonly #size: number;
  readonly #bytes: ReadAhead;

  constructor(
    path: string,
    bucket: Bucket,
    { key, size, etag }: StoredObject,
    kept: KeptPieces,
    { signal }: Pick<ReadOptions, "signal">,
  ) {
    this.path = path;
    this.#size = size;
    this.#bytes = new ReadAhead(
      size,
      (target, position) => bucket.readRange(key, target, position, { etag, signal }),
      kept,
    );
  }

  async size(): Promise<number> {
    return this.#size;
  }

  async read(target: Uint8Array, position: number): Promise<number> {
    return await this.#bytes.read(target, position);
  }

  async fill(target: Uint8Array, position: number, end: number): Promise<void> {
    await fillFrom(this, target, position, end);
  }

  async close(): Promise<void> {
    this.#bytes.forget();
  }
}
