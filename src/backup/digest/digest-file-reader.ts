import { createHash, type Hash } from "node:crypto";
import type { DamageError } from "../base/errors.js";
import type { ReadOptions } from "../image/image-file.js";
import { type FilePlace, openPlace, type ReadableFile } from "../image/readable-file.js";
import { DIGEST_ALGORITHMS } from "./algorithms.js";
import type { DigestHeader, DigestRun } from "./digest-file.js";
import {
  damagedFile,
  decodeHeader,
  HEAD_BYTES,
  HEADER_BYTES,
  KIND,
  MASKS_BYTES,
  MAX_DATA_COUNT,
  READ_BYTES,
} from "./digest-file.js";

/** Reads a digest file from front to back with bounded memory. The format is drawn in digest-file.ts. */
export class DigestFileReader {
  readonly header: DigestHeader;
  readonly #file: ReadableFile;
  readonly #start: Buffer;

  private constructor(file: ReadableFile, start: Buffer) {
    this.#file = file;
    this.#start = start;
    this.header = decodeHeader(start, file.path);
  }

  /**
   * Opens the file and reads its header.
   * @throws {DamageError} `E_DIGEST_FILE`: this is no digest file, or its header is invalid; `E_IMAGE_FILE`:
   *   it is no regular file
   * @throws the file system's or the store's error
   */
  static async open(place: FilePlace, options: ReadOptions = {}): Promise<DigestFileReader> {
    const file = await openPlace(place, options);
    try {
      const start = Buffer.alloc(HEADER_BYTES);
      const bytes = await file.read(start, 0);
      return new DigestFileReader(file, start.subarray(0, bytes));
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /**
   * The records, in ascending order of clusters. Until the end is reached, they are only known to be
   * well-formed, because the SHA-256 of the file is compared after the last record.
   * @param sha256 the file's SHA-256 in hexadecimal digits; undefined: it is not compared
   * @throws {DamageError} `E_DIGEST_FILE`: a record is malformed, out of order or missing, bytes follow the
   *   last record, or the SHA-256 differs
   */
  async *runs(sha256?: string): AsyncGenerator<PlacedDigestRun> {
    for await (const block of this.runBlocks(sha256)) yield* block;
  }

  /** Like {@link runs}, those of one read of the file together. */
  runBlocks(sha256?: string): AsyncGenerator<readonly PlacedDigestRun[]> {
    const bytes = new SequentialFile(this.#file, HEADER_BYTES, this.#start);
    return this.#records(bytes, (length) => this.#taken(bytes, length), sha256);
  }

  /**
   * Like {@link runs}, but jumps over the digests, which {@link digestsAt} reads: for callers that need only
   * some of them. `digests` is empty, and the SHA-256 of the file is not compared.
   * @throws {DamageError} `E_DIGEST_FILE`: a record is malformed, out of order or missing, or bytes follow
   *   the last record
   */
  async *heads(): AsyncGenerator<PlacedDigestRun> {
    for await (const block of this.headBlocks()) for (const run of block) yield run;
  }

  /** Like {@link heads}, those of one read of the file together. */
  headBlocks(): AsyncGenerator<readonly PlacedDigestRun[]> {
    const bytes = new SequentialFile(this.#file, HEADER_BYTES);
    return this.#records(bytes, (length) => {
      bytes.jump(length);
      return NO_DIGESTS;
    });
  }

  /**
   * The records, those that are in memory at the same time together.
   * @param take consumes that many bytes of digests; returns a promise only if it has to read the file
   */
  async *#records(
    bytes: SequentialFile,
    take: (length: number) => Buffer | Promise<Buffer>,
    sha256?: string,
  ): AsyncGenerator<readonly PlacedDigestRun[]> {
    const { algorithm, geometry } = this.header;
    const digestSize = DIGEST_ALGORITHMS[algorithm].bytes;
    const clusters = Math.ceil(geometry.virtualSize / geometry.clusterSize);
    let next = 0;
    let block: PlacedDigestRun[] = [];
    for (let records = 0; ; records += 1) {
      if (!bytes.has(HEAD_BYTES)) {
        if (block.length > 0) yield block;
        block = [];
        await this.#more(bytes, HEAD_BYTES);
      }
      const kind = bytes.uint8(0);
      const count = bytes.uint32(4);
      const cluster = bytes.uint64(8);
      bytes.skip(HEAD_BYTES);
      if (kind === KIND.end) {
        if (cluster !== records)
          throw this.#damage(`its end record counts ${cluster} records, but there are ${records}`);
        break;
      }
      if (count < 1 || cluster < next || cluster + count > clusters) {
        throw this.#damage(`record ${records} does not follow the one before it or leaves the disk`);
      }
      next = cluster + count;
      if (kind === KIND.data && count <= MAX_DATA_COUNT) {
        const digestsAt = bytes.position;
        const taken = take(count * digestSize);
        const digests = taken instanceof Promise ? await taken : taken;
        block.push({ kind: "data", cluster, count, digestsAt, digests });
      } else if (kind === KIND.zero) {
        block.push({ kind: "zero", cluster, count, digestsAt: bytes.position });
      } else if (kind === KIND.partial && count === 1) {
        if (!bytes.has(MASKS_BYTES)) await this.#more(bytes, MASKS_BYTES);
        const dataMask = bytes.uint32(0);
        const zeroMask = bytes.uint32(4);
        bytes.skip(MASKS_BYTES);
        if ((dataMask & zeroMask) !== 0) throw this.#damage(`the masks of record ${records} overlap`);
        const digestsAt = bytes.position;
        const taken = take(dataMask === 0 ? 0 : digestSize);
        const digests = taken instanceof Promise ? await taken : taken;
        block.push({ kind: "partial", cluster, count: 1, dataMask, zeroMask, digestsAt, digests });
      } else {
        throw this.#damage(
          `record ${records} has the unknown kind ${kind}, or more clusters than its kind may have`,
        );
      }
    }
    if (block.length > 0) yield block;
    if (bytes.has(1) || (await bytes.more(1))) throw this.#damage("bytes follow its last record");
    if (sha256 !== undefined && bytes.sha256() !== sha256) {
      throw this.#damage("its SHA-256 differs from the one in the manifest");
    }
  }

  /**
   * The digests of `count` clusters.
   * @param position where they begin in the file, in bytes, calculated from the `digestsAt` of a run
   * @throws {DamageError} `E_DIGEST_FILE`: the file ends too early
   */
  async digestsAt(position: number, count: number): Promise<Buffer> {
    const digests = Buffer.allocUnsafe(count * DIGEST_ALGORITHMS[this.header.algorithm].bytes);
    const bytes = await this.#file.read(digests, position);
    if (bytes < digests.length) throw this.#damage("it was truncated after it was opened");
    return digests;
  }

  /**
   * Looks whether the file ends as a digest file does, without reading it: a truncated one doesn't.
   * @throws {DamageError} `E_DIGEST_FILE`: it doesn't
   */
  async assertComplete(): Promise<void> {
    const size = await this.#file.size();
    const end = Buffer.alloc(HEAD_BYTES);
    await this.#file.read(end, Math.max(HEADER_BYTES, size - HEAD_BYTES));
    if (end.readUInt8(0) !== KIND.end || end.readUInt32BE(4) !== 0) throw this.#damage("its end is missing");
  }

  async close(): Promise<void> {
    await this.#file.close();
  }

  #taken(bytes: SequentialFile, length: number): Buffer | Promise<Buffer> {
    if (bytes.has(length)) return bytes.take(length);
    return this.#more(bytes, length).then(() => bytes.take(length));
  }

  async #more(bytes: SequentialFile, length: number): Promise<void> {
    if (!(await bytes.more(length))) throw this.#damage("it ends before its last record");
  }

  #damage(what: string): DamageError {
    return damagedFile(this.#file.path, what);
  }
}

const NO_DIGESTS = Buffer.alloc(0);

/** Reads a file in large blocks from front to back, and can compute its SHA-256. */
class SequentialFile {
  readonly #file: ReadableFile;
  readonly #hash: Hash | undefined;
  /** The bytes that were read last; those before `#at` are consumed. */
  #block: Buffer = Buffer.alloc(0);
  #at = 0;
  /** Offset in the file at which the block ends. */
  #end: number;

  /**
   * @param position where reading begins
   * @param before the bytes of the file before `position`, for the SHA-256; undefined: it is not computed
   */
  constructor(file: ReadableFile, position: number, before?: Buffer) {
    this.#file = file;
    this.#end = position;
    this.#hash = before && createHash("sha256").update(before);
  }

  /** Offset of the next byte in the file. */
  get position(): number {
    return this.#end - this.#block.length + this.#at;
  }

  /** Whether the next `length` bytes are in memory; if not, call {@link more}. */
  has(length: number): boolean {
    return this.#at + length <= this.#block.length;
  }

  /** Reads until the next `length` bytes are in memory. Returns false if the file ends before that. */
  async more(length: number): Promise<boolean> {
    while (!this.has(length)) {
      const rest = this.#block.subarray(this.#at);
      const block = Buffer.allocUnsafe(Math.max(READ_BYTES, length));
      rest.copy(block);
      const bytes = await this.#file.read(block.subarray(rest.length), this.#end);
      if (bytes === 0) return false;
      this.#end += bytes;
      this.#block = block.subarray(0, rest.length + bytes);
      this.#at = 0;
      this.#hash?.update(this.#block.subarray(rest.length));
    }
    return true;
  }

  /** The number that begins `at` bytes after the next byte. It must be in memory. */
  uint8(at: number): number {
    return this.#block.readUInt8(this.#at + at);
  }

  uint32(at: number): number {
    return this.#block.readUInt32BE(this.#at + at);
  }

  uint64(at: number): number {
    return this.uint32(at) * 2 ** 32 + this.uint32(at + 4);
  }

  /** Consumes the next `length` bytes, which must be in memory. */
  take(length: number): Buffer {
    this.skip(length);
    return this.#block.subarray(this.#at - length, this.#at);
  }

  skip(length: number): void {
    this.#at += length;
  }

  /** Like {@link skip}, but the bytes need not be in memory. The SHA-256 would lack them. */
  jump(length: number): void {
    if (this.has(length)) {
      this.skip(length);
      return;
    }
    this.#end = this.position + length;
    this.#block = NO_DIGESTS;
    this.#at = 0;
  }

  /** The SHA-256 of everything read, if it is computed. May be called once, at the end. */
  sha256(): string | undefined {
    return this.#hash?.digest("hex");
  }
}

/** A run, and the offset in the file at which its digests begin, for {@link DigestFileReader.digestsAt}. */
export type PlacedDigestRun = DigestRun & { readonly digestsAt: number };
