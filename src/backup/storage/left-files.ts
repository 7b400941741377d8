import type { LeftWhole } from "../image/new-file.js";
import type { AskOptions, PendingUpload, StoredObject } from "../s3/asker.js";
import type { Bucket } from "../s3/bucket.js";
import { ObjectETag } from "../s3/etags.js";
import type { LeftUpload } from "../s3/upload.js";

/**
 * What a killed run has left of a point in a bucket: files that are whole, and uploads that are not. Nothing
 * of it is believed: bytes are compared with their ETags before they count as sent.
 */
export class LeftFiles {
  readonly #bucket: Bucket;
  readonly #objects = new Map<string, StoredObject>();
  readonly #uploads = new Map<string, PendingUpload>();

  private constructor(bucket: Bucket) {
    this.#bucket = bucket;
  }

  /** @param prefix of the point's keys */
  static async find(bucket: Bucket, prefix: string, options: AskOptions): Promise<LeftFiles> {
    const left = new LeftFiles(bucket);
    for await (const object of bucket.list(prefix, options)) left.#objects.set(object.key, object);
    for await (const upload of bucket.pendingUploads(prefix, options)) {
      const other = left.#uploads.get(upload.key);
      const [newer, older] =
        other && other.begunAt > upload.begunAt ? [other, upload] : ([upload, other] as const);
      left.#uploads.set(upload.key, newer);
      if (older) await bucket.abortUpload(older, options);
    }
    return left;
  }

  /** A file that seems to be whole. It stays if it is the same. */
  whole(key: string, bytes: number): LeftWhole | undefined {
    const object = this.#objects.get(key);
    if (object?.size !== bytes) return undefined;
    const etag = new ObjectETag(bytes);
    return {
      update: (piece) => etag.update(piece),
      isSame: () => {
        const isSame = etag.digest() === object.etag;
        if (isSame) this.#objects.delete(key);
        return isSame;
      },
    };
  }

  /** An upload to go on with. It belongs to the caller, and so does what has its key. */
  async upload(key: string, options: AskOptions): Promise<LeftUpload | undefined> {
    this.#objects.delete(key);
    const upload = this.#uploads.get(key);
    if (!upload) return undefined;
    this.#uploads.delete(key);
    return { uploadId: upload.uploadId, parts: await this.#bucket.uploadedParts(upload, options) };
  }

  /** Removes what nobody has gone on with. */
  async removeRest(options: AskOptions): Promise<void> {
    for (const upload of this.#uploads.values()) await this.#bucket.abortUpload(upload, options);
    await this.#bucket.remove([...this.#objects.keys()], options);
  }
}
