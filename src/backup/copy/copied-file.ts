import { createHash } from "node:crypto";
import { anySignal } from "../../nbd/index.js";
import { isUnreadable } from "../base/damage.js";
import { DamageError } from "../base/errors.js";
import { isZero } from "../base/zeroes.js";
import { type Block, blocksAhead } from "../image/blocks-ahead.js";
import { fillFrom } from "../image/fill-file.js";
import type { ImageFile } from "../image/image-file.js";
import type { LeftWhole, NewFile } from "../image/new-file.js";
import {
  type FilePlace,
  openPlace,
  pathOf,
  type ReadableFile,
  type RemoteFile,
} from "../image/readable-file.js";
import type { RateLimit } from "../pull/rate-limit.js";

const MIB = 1024 * 1024;
/** Bytes that are copied at a time and have a digest of their own. */
const PIECE_BYTES = MIB;
/** The same of a file that has more than the given bytes, so that its digests stay few. */
const LARGE_BYTES = 256 * 1024 * MIB;
const LARGE_PIECE_BYTES = 16 * MIB;
const DIGEST_BYTES = 32;
/** Bytes that are read at a time, if that is more than a piece: each request to a store costs. */
const READ_BYTES = 4 * MIB;
/** Reads under way and what was read: three are 12 MiB, of a large file 48 MiB. */
const READS_AT_ONCE = 3;
/** Pieces of a file that are kept while it is looked at: tables are read beside the data. */
const KEPT_PIECES = 8;

interface CopyFileOptions {
  /**
   * A file of more bytes is damaged: whoever can write to the repository could fill the other one otherwise.
   */
  readonly most: number;
  readonly limit?: RateLimit | undefined;
  /** What a killed run has left of the copy on this machine: what it has is not read from the original. */
  readonly left?: ImageFile | undefined;
  /** What it has left elsewhere, if that may be whole. */
  readonly leftWhole?: ((bytes: number) => LeftWhole | undefined) | undefined;
  /** Where the copy can be read; default: what is found out about it is read from the original again. */
  readonly copy?: FilePlace | undefined;
  readonly signal: AbortSignal;
  /** Called with the number of bytes that were copied since the last call. */
  readonly onBytes: (bytes: number) => void;
}

/**
 * A file as it was copied. Each piece that is read again is compared with the SHA-256 of what was copied, so
 * that what is found out about this file is true of the copy too, whoever changes the original meanwhile.
 */
export class CopiedFile implements RemoteFile {
  readonly path: string;
  readonly #place: FilePlace;
  readonly #pieces: Pieces;

  private constructor(place: FilePlace, pieces: Pieces) {
    this.path = `${pathOf(place)} (as copied)`;
    this.#place = place;
    this.#pieces = pieces;
  }

  /**
   * Copies a file, byte for byte. Pieces of zeroes are not written, so that a file stays sparse.
   * @param create makes the copy, which has so many bytes and is written from front to back
   * @throws {DamageError} the file is missing, no regular file, too long, or the medium fails
   * @throws the file system's or the store's error, or the signal's reason
   */
  static async copy(
    from: FilePlace,
    create: (bytes: number) => Promise<NewFile>,
    options: CopyFileOptions,
  ): Promise<CopiedFile> {
    const { most, left } = options;
    const unwanted = new AbortController();
    // Once for each file: Node 20 keeps something of each such signal.
    const reading = { unwanted, signal: anySignal(options.signal, unwanted.signal) };
    const file = await openPlace(from, reading);
    let to: NewFile | undefined;
    try {
      const size = await file.size();
      if (size > most) throw tooLong(file.path, size, most);
      const pieceBytes = size > LARGE_BYTES ? LARGE_PIECE_BYTES : PIECE_BYTES;
      const pieces = {
        length: size,
        pieceBytes,
        digests: Buffer.alloc(Math.ceil(size / pieceBytes) * DIGEST_BYTES),
      };
      const place = options.copy ?? from;
      const whole = options.leftWhole?.(size);
      if (whole) {
        const nothingSent = { ...options, reading, leftBytes: size };
        await eachPiece(file, pieces, nothingSent, async (bytes) => whole.update(bytes));
        if (whole.isSame()) return new CopiedFile(place, pieces);
        options.onBytes(-size);
      }
      // Of a piece that was written in part nobody knows how much.
      await left?.truncate(pieceBytes * Math.floor(Math.min(size, await left.size()) / pieceBytes));
      to = left ?? (await create(size));
      const target = to;
      await eachPiece(
        file,
        pieces,
        { ...options, reading, leftBytes: left ? await left.size() : to.leftBytes },
        async (bytes, at) => {
          if (!isZero(bytes)) await target.write(bytes, at);
        },
      );
      await to.truncate(size);
      await to.finish({ sync: true });
      return new CopiedFile(place, pieces);
    } finally {
      await to?.close();
      await file.close();
    }
  }

  /** @throws {DamageError} it is missing now, or no regular file any more */
  async open(options: Parameters<RemoteFile["open"]>[0] = {}): Promise<ReadableFile> {
    const file = await openPlace(this.#place, options);
    return new ComparedFile(this.path, file, this.#pieces);
  }
}

/** A file cut into pieces. */
interface Pieces {
  /** Bytes of the file. */
  readonly length: number;
  /** Bytes of each piece but the last one. */
  readonly pieceBytes: number;
  /** The SHA-256 of each piece, one after the other. */
  readonly digests: Buffer;
}

interface PieceOptions extends CopyFileOptions {
  readonly reading: {
    readonly unwanted: AbortController;
    /** Ends reads of the file: the caller's, or `unwanted`. */
    readonly signal: AbortSignal;
  };
  /** Bytes at the front that need not be sent, as it seems. */
  readonly leftBytes?: number | undefined;
}

/** Reads a file from front to back, digests its pieces, and gives each to `work` that was read from it. */
async function eachPiece(
  file: ReadableFile,
  { length, pieceBytes, digests }: Pieces,
  { limit, left, leftBytes = 0, reading, signal, onBytes }: PieceOptions,
  work: (bytes: Buffer, at: number) => Promise<void>,
): Promise<void> {
  const leftEnd = leftBytes >= length ? length : leftBytes - (leftBytes % pieceBytes);
  // A limited rate is kept to by the piece.
  const blockBytes = limit ? pieceBytes : Math.max(pieceBytes, READ_BYTES);
  const blocks = blocksAhead(
    blocksOf(length, leftEnd, blockBytes),
    READS_AT_ONCE,
    async (target, { at, isLeft }) => {
      if (!isLeft) await limit?.take(target.length, reading.signal);
      reading.signal.throwIfAborted();
      await readWhole(left && isLeft ? left : file, target, at);
    },
    reading.unwanted,
  );
  for await (const { block, bytes } of blocks) {
    for (let done = 0; done < bytes.length; done += pieceBytes) {
      signal.throwIfAborted();
      const piece = bytes.subarray(done, done + pieceBytes);
      const at = block.at + done;
      digestOf(piece).copy(digests, (at / pieceBytes) * DIGEST_BYTES);
      if (!left || !block.isLeft) await work(piece, at);
      onBytes(piece.length);
    }
  }
}

interface CopyBlock extends Block {
  /** Whether it need not be sent, as it seems. */
  readonly isLeft: boolean;
}

/** What need not be sent and the rest share no block. */
function* blocksOf(length: number, leftEnd: number, blockBytes: number): Generator<CopyBlock> {
  for (let at = 0; at < length; ) {
    const isLeft = at < leftEnd;
    const end = Math.min(at + blockBytes, isLeft ? leftEnd : length);
    yield { at, length: end - at, isLeft };
    at = end;
  }
}

/** Reads whole pieces, and compares each with its digest. */
class ComparedFile implements ReadableFile {
  readonly path: string;
  readonly #file: ReadableFile;
  readonly #pieces: Pieces;
  /** The pieces read last, by their number; the oldest first. */
  readonly #kept = new Map<number, Promise<Buffer>>();

  constructor(path: string, file: ReadableFile, pieces: Pieces) {
    this.path = path;
    this.#file = file;
    this.#pieces = pieces;
  }

  async size(): Promise<number> {
    return this.#pieces.length;
  }

  async read(target: Uint8Array, position: number): Promise<number> {
    const { length: size, pieceBytes } = this.#pieces;
    const length = Math.max(0, Math.min(target.length, size - position));
    if (length === 0) return 0;
    const first = Math.floor(position / pieceBytes);
    const last = Math.floor((position + length - 1) / pieceBytes);
    let done = 0;
    for (const [i, piece] of (await Promise.all(this.#piecesOf(first, last))).entries()) {
      const part = piece.subarray(position + done - (first + i) * pieceBytes).subarray(0, length - done);
      target.set(part, done);
      done += part.length;
    }
    return length;
  }

  async fill(target: Uint8Array, position: number, end: number): Promise<void> {
    await fillFrom(this, target, position, end);
  }

  /** The pieces from `first` to `last`. Those that are not kept and lie side by side are read at once. */
  #piecesOf(first: number, last: number): Promise<Buffer>[] {
    const pieces: Promise<Buffer>[] = [];
    for (let index = first; index <= last; index += 1) {
      if (!this.#kept.has(index)) this.#begin(index, last);
      pieces.push(this.#kept.get(index) as Promise<Buffer>);
    }
    // Not before all of them are found: one that is needed here could be among the oldest.
    for (const oldest of this.#kept.keys()) {
      if (this.#kept.size <= KEPT_PIECES) break;
      this.#kept.delete(oldest);
    }
    return pieces;
  }

  /** Begins to read the pieces from `first` on, up to one that is kept, or up to `last`. */
  #begin(first: number, last: number): void {
    let end = first + 1;
    while (end <= last && !this.#kept.has(end)) end += 1;
    const { pieceBytes } = this.#pieces;
    const stretch = this.#readPieces(first, end);
    for (let index = first; index < end; index += 1) {
      const at = (index - first) * pieceBytes;
      this.#kept.set(
        index,
        stretch.then((bytes) => bytes.subarray(at, at + pieceBytes)),
      );
    }
  }

  async #readPieces(first: number, end: number): Promise<Buffer> {
    const { length, pieceBytes, digests } = this.#pieces;
    const start = first * pieceBytes;
    const bytes = Buffer.allocUnsafeSlow(Math.min(end * pieceBytes, length) - start);
    await readWhole(this.#file, bytes, start);
    for (let index = first; index < end; index += 1) {
      const piece = bytes.subarray((index - first) * pieceBytes, (index - first + 1) * pieceBytes);
      const digest = digests.subarray(index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES);
      if (!digestOf(piece).equals(digest)) throw changed(this.#file.path);
    }
    return bytes;
  }

  async close(): Promise<void> {
    this.#kept.clear();
    await this.#file.close();
  }
}

/** @throws {DamageError} the file ends before, or the medium fails */
async function readWhole(file: ReadableFile, target: Buffer, position: number): Promise<void> {
  const read = await file.read(target, position).catch((error: unknown) => {
    if (!isUnreadable(error)) throw error;
    const message = `the file system cannot read ${file.path} (${error.code})`;
    throw new DamageError("E_DAMAGED", message, { cause: error, details: { path: file.path } });
  });
  if (read < target.length) throw changed(file.path);
}

function changed(path: string): DamageError {
  const message = `${path} was changed while it was copied: find out who writes there, and copy again`;
  return new DamageError("E_CHANGED_MEANWHILE", message, { details: { path } });
}

function tooLong(path: string, size: number, most: number): DamageError {
  const message = `${path} has ${size} bytes, and by its manifest at most ${most} make sense`;
  return new DamageError("E_DAMAGED", message, { details: { path } });
}

function digestOf(bytes: Uint8Array): Buffer {
  return createHash("sha256").update(bytes).digest();
}
