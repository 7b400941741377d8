import { createHash } from "node:crypto";
import { DamageError } from "../base/errors.js";
import { isZero } from "../base/zeroes.js";
import {
  type FilePlace,
  openPlace,
  pathOf,
  type ReadableFile,
  type RemoteFile,
} from "../image/readable-file.js";
import type { RateLimit } from "../pull/rate-limit.js";

/** Bytes that are copied at a time and have a digest of their own. */
const PIECE_BYTES = 1024 * 1024;
const DIGEST_BYTES = 32;
/** Pieces of a file that are kept while it is looked at: tables are read beside the data. */
const KEPT_PIECES = 8;

/** Where the pieces of a copied file go, in order. */
export interface NewFile {
  /** `bytes` may be used again when this has returned. */
  write(bytes: Uint8Array, position: number): Promise<void>;
  /** Makes the file whole, with so many bytes. What was not written is zeroes. */
  finish(length: number): Promise<void>;
  close(): Promise<void>;
}

export interface CopyFileOptions {
  readonly limit?: RateLimit | undefined;
  readonly signal: AbortSignal;
  /** Called with the number of bytes that were copied since the last call. */
  readonly onBytes: (bytes: number) => void;
}

/**
 * A file as it was copied. Each piece that is read again is compared with the SHA-256 of what was copied, so that
 * what is found out about this file is true of the copy too, whoever changes the original meanwhile.
 */
export class CopiedFile implements RemoteFile {
  readonly path: string;
  readonly #from: FilePlace;
  readonly #length: number;
  /** The SHA-256 of each piece, one after the other. */
  readonly #digests: Buffer;

  private constructor(from: FilePlace, length: number, digests: Buffer) {
    this.path = `${pathOf(from)} (as copied)`;
    this.#from = from;
    this.#length = length;
    this.#digests = digests;
  }

  /**
   * Copies a file, byte for byte. Pieces of zeroes are not written, so that a file stays sparse.
   * @throws {DamageError} the file is missing, or no regular file
   * @throws the file system's or the store's error, or the signal's reason
   */
  static async copy(from: FilePlace, to: NewFile, options: CopyFileOptions): Promise<CopiedFile> {
    const { limit, signal, onBytes } = options;
    const file = await openPlace(from, { signal });
    try {
      const digests: Buffer[] = [];
      const piece = Buffer.allocUnsafeSlow(PIECE_BYTES);
      let length = 0;
      for (let read = piece.length; read === piece.length; length += read) {
        signal.throwIfAborted();
        await limit?.take(piece.length, signal);
        read = await file.read(piece, length);
        const bytes = piece.subarray(0, read);
        if (read > 0) digests.push(digestOf(bytes));
        if (!isZero(bytes, 0, bytes.length)) await to.write(bytes, length);
        onBytes(read);
      }
      await to.finish(length);
      return new CopiedFile(from, length, Buffer.concat(digests));
    } finally {
      await file.close();
    }
  }

  /** @throws {DamageError} it is missing now, or no regular file any more */
  async open(options: Parameters<RemoteFile["open"]>[0] = {}): Promise<ReadableFile> {
    const file = await openPlace(this.#from, options);
    return new ComparedFile(this.path, file, this.#length, this.#digests);
  }
}

/** Reads whole pieces, and compares each with its digest. */
class ComparedFile implements ReadableFile {
  readonly path: string;
  readonly #file: ReadableFile;
  readonly #length: number;
  readonly #digests: Buffer;
  /** The pieces read last, by their number; the oldest first. */
  readonly #kept = new Map<number, Promise<Buffer>>();

  constructor(path: string, file: ReadableFile, length: number, digests: Buffer) {
    this.path = path;
    this.#file = file;
    this.#length = length;
    this.#digests = digests;
  }

  async size(): Promise<number> {
    return this.#length;
  }

  async read(target: Uint8Array, position: number): Promise<number> {
    const length = Math.max(0, Math.min(target.length, this.#length - position));
    for (let done = 0; done < length; ) {
      const at = position + done;
      const index = Math.floor(at / PIECE_BYTES);
      const piece = await this.#piece(index);
      const part = piece.subarray(at - index * PIECE_BYTES).subarray(0, length - done);
      target.set(part, done);
      done += part.length;
    }
    return length;
  }

  async fill(target: Uint8Array, position: number, end: number): Promise<void> {
    const inside = Math.max(0, Math.min(target.length, end - position));
    const bytes = await this.read(target.subarray(0, inside), position);
    if (bytes < inside) {
      const message = `${this.path} ends at byte ${position + bytes}, in the middle of the stored data`;
      throw new DamageError("E_IMAGE_TRUNCATED", message, {
        details: { path: this.path, hostOffset: position },
      });
    }
    target.fill(0, inside);
  }

  #piece(index: number): Promise<Buffer> {
    const known = this.#kept.get(index);
    if (known) return known;
    const piece = this.#readPiece(index);
    this.#kept.set(index, piece);
    const [oldest] = this.#kept.keys();
    if (this.#kept.size > KEPT_PIECES && oldest !== undefined) this.#kept.delete(oldest);
    return piece;
  }

  async #readPiece(index: number): Promise<Buffer> {
    const start = index * PIECE_BYTES;
    const piece = Buffer.allocUnsafeSlow(Math.min(PIECE_BYTES, this.#length - start));
    const read = await this.#file.read(piece, start);
    const digest = this.#digests.subarray(index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES);
    if (read === piece.length && digestOf(piece).equals(digest)) return piece;
    const message = `${this.#file.path} was changed while it was copied: find out who writes there, and copy again`;
    throw new DamageError("E_CHANGED_MEANWHILE", message, { details: { path: this.#file.path } });
  }

  async close(): Promise<void> {
    this.#kept.clear();
    await this.#file.close();
  }
}

function digestOf(bytes: Uint8Array): Buffer {
  return createHash("sha256").update(bytes).digest();
}
