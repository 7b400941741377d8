import type { Readable } from "node:stream";
import { BackupError, DamageError } from "../base/errors.js";
import type { Asker, AskOptions } from "./asker.js";
import { isUnmet, statusOf } from "./errors.js";
import { bareETag } from "./etags.js";
import { type AskedBytes, PreparedGets, type SentBytes } from "./prepared-gets.js";

/** Reads objects of a bucket. What the store answers is compared with what was asked for. */
export class ObjectReads {
  readonly #bucket: Asker;
  readonly #gets: PreparedGets;

  constructor(bucket: Asker) {
    this.#bucket = bucket;
    this.#gets = new PreparedGets(bucket.client);
  }

  /**
   * The content of a small object.
   * @param most bytes that it may have
   * @param options.etag the object that is meant, as for `readRange`; default: the one that is there now
   * @throws {DamageError} `E_S3_MISSING`; `E_S3_TOO_LARGE`: it is longer; `E_S3_CHANGED`: it was replaced
   */
  async get(
    key: string,
    most: number,
    { etag, ...options }: AskOptions & { readonly etag?: string | undefined },
  ): Promise<{ readonly bytes: Buffer; readonly etag: string }> {
    return await this.#bucket.ask("reading", key, options, async (abortSignal) => {
      const sent = await this.#send({ Key: key, IfMatch: etag, Range: undefined }, abortSignal);
      const { body, contentLength } = sent;
      if (contentLength === undefined || contentLength > most) {
        body.destroy();
        const message = `${this.#path(key)} has ${contentLength} bytes, and at most ${most} make sense`;
        throw new DamageError("E_S3_TOO_LARGE", message, { details: { key } });
      }
      const bytes = Buffer.alloc(contentLength);
      await this.#fill(bytes, body, key);
      return { bytes, etag: bareETag(sent.etag) };
    });
  }

  /**
   * Fills `target` with the object's bytes from `position`.
   * @param options.etag the object that is meant: another one that has taken its place is damage
   * @throws {DamageError} `E_S3_CHANGED`: it was replaced; `E_S3_MISSING`; `E_S3_RANGE`: the store sent other
   *   bytes than it was asked for
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
    await this.#bucket.ask("reading", key, options, async (abortSignal) => {
      try {
        const { body, contentRange } = await this.#send(request, abortSignal);
        const range = /^bytes (\d+)-(\d+)\//.exec(contentRange ?? "");
        if (Number(range?.[1]) !== position || Number(range?.[2]) !== last) {
          body.destroy();
          const message = `${this.#path(key)}: bytes ${position} to ${last} were asked for, and the store sent ${contentRange ?? "everything"}: it is no store for a repository, or the object is shorter than its manifest says`;
          throw new DamageError("E_S3_RANGE", message, { details: { key } });
        }
        await this.#fill(target, body, key);
      } catch (error) {
        if (statusOf(error) === 416) {
          const message = `${this.#path(key)} ends before byte ${last}`;
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
  async #send(asked: Omit<AskedBytes, "Bucket">, abortSignal: AbortSignal): Promise<SentBytes> {
    const { Key, IfMatch } = asked;
    const changed = (cause?: unknown): DamageError => {
      const message = `${this.#path(Key)} was replaced while it was read: read it again`;
      return new DamageError("E_S3_CHANGED", message, { cause, details: { key: Key } });
    };
    let sent: SentBytes;
    try {
      sent = await this.#gets.send({ Bucket: this.#bucket.address.bucket, ...asked }, abortSignal);
    } catch (error) {
      throw isUnmet(error) ? changed(error) : error;
    }
    if (IfMatch === undefined || bareETag(sent.etag) === IfMatch) return sent;
    sent.body.destroy();
    throw changed();
  }

  /** @throws {BackupError} `E_S3_TRUNCATED`, which is asked again */
  async #fill(target: Uint8Array, body: Readable, key: string): Promise<void> {
    let filled = 0;
    const truncated = (cause?: unknown): BackupError => {
      const message = `reading ${this.#path(key)}: the store sent ${filled} of ${target.length} bytes and hung up: look at the store and the network`;
      return new BackupError("E_S3_TRUNCATED", message, { cause, details: { key } });
    };
    try {
      for await (const piece of body as AsyncIterable<Buffer>) {
        const room = piece.subarray(0, target.length - filled);
        target.set(room, filled);
        filled += room.length;
        if (room.length < piece.length) throw this.#bucket.nonsense("more bytes than were asked for", key);
      }
    } catch (error) {
      if (error instanceof BackupError) throw error;
      throw truncated(error);
    }
    if (filled < target.length) throw truncated();
  }

  #path(key: string): string {
    return `s3://${this.#bucket.address.bucket}/${key}`;
  }
}
