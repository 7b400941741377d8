import type { CompletedPart } from "@aws-sdk/client-s3";
import { anySignal } from "../../nbd/index.js";
import { BackupError } from "../base/errors.js";
import type { AskOptions } from "./asker.js";
import type { Bucket } from "./bucket.js";
import { type AfterSignal, Multipart } from "./multipart.js";

/**
 * A part of a large object that is larger than what memory holds: it is uploaded in pieces, as an object of
 * its own, which the store then copies into the large one.
 */
export class PartObject {
  readonly #bucket: Bucket;
  readonly #multipart: Multipart;
  /** For what follows when it is an object. */
  readonly #options: AskOptions;
  readonly #pieces: Promise<CompletedPart>[] = [];
  #size = 0;

  /**
   * @param key that no other object has
   * @param options.stop as for {@link Multipart}, as `late` is
   */
  constructor(
    bucket: Bucket,
    key: string,
    { signal, late, stop }: AskOptions & Pick<AfterSignal, "late"> & { readonly stop: AbortSignal },
  ) {
    this.#bucket = bucket;
    this.#multipart = new Multipart(bucket, key, { signal, late, stop });
    this.#options = { signal: anySignal(signal, stop) };
  }

  /**
   * Adds the next piece.
   * @param inTurn sends it when its turn has come
   */
  add(
    bytes: Buffer,
    inTurn: (send: () => Promise<CompletedPart>) => Promise<CompletedPart>,
  ): Promise<CompletedPart> {
    const number = this.#pieces.length + 1;
    this.#size += bytes.length;
    const piece = inTurn(() => this.#multipart.put(number, bytes));
    this.#pieces.push(piece);
    return piece;
  }

  /**
   * Has the store copy it into a larger one when all its pieces are there, and removes it then.
   * @throws {BackupError} `E_S3_FAILED`: the store has made something else of the pieces
   */
  async moveInto(whole: Multipart, number: number): Promise<CompletedPart> {
    const { key } = this.#multipart;
    const pieces = await Promise.all(this.#pieces);
    await this.#multipart.complete(pieces);
    const found = await this.#bucket.find(key, this.#options);
    if (found?.size !== this.#size) {
      const message = `s3://${this.#bucket.address.bucket}/${key} was uploaded with ${this.#size} bytes, and ${this.#bucket.store} has ${found?.size ?? "none"} of them: look at the store`;
      throw new BackupError("E_S3_FAILED", message, { details: { key } });
    }
    const range = { key, etag: found.etag, start: 0, length: found.size, isWhole: true };
    const part = await whole.copy(number, range);
    await this.#bucket.remove([key], this.#options);
    return part;
  }

  /** Ends an upload that was not completed. A completed object stays: who has the lease removes it. */
  async abort(): Promise<void> {
    await this.#multipart.abort();
  }
}
