import { createHash } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import type { DamageError } from "../base/errors.js";
import { DIGEST_ALGORITHMS } from "./digest.js";
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

/**
 * Reads a digest file from front to back with bounded memory.
 *
 * `sha256`, where given, is compared after the last record: whoever acts on a run before the end
 * does so on records that were well-formed but not yet proven.
 */
export class DigestFileReader {
  readonly header: DigestHeader;
  readonly #file: FileHandle;
  readonly #path: string;
  readonly #start: Buffer;

  private constructor(file: FileHandle, path: string, start: Buffer) {
    this.#file = file;
    this.#path = path;
    this.#start = start;
    this.header = decodeHeader(start, path);
  }

  /** @throws {DamageError} not a digest file, or of another version */
  static async open(path: string): Promise<DigestFileReader> {
    const file = await open(path, "r");
    try {
      const start = Buffer.alloc(HEADER_BYTES);
      const { bytesRead } = await file.read(start, 0, HEADER_BYTES, 0);
      return new DigestFileReader(file, path, start.subarray(0, bytesRead));
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** @throws {DamageError} a malformed, unordered or missing record, or another SHA-256 than `sha256` */
  async *runs(sha256?: string): AsyncGenerator<PlacedDigestRun> {
    const { algorithm, geometry } = this.header;
    const digestSize = DIGEST_ALGORITHMS[algorithm].bytes;
    const clusters = Math.ceil(geometry.virtualSize / geometry.clusterSize);
    const bytes = new SequentialFile(this.#file, HEADER_BYTES, this.#start);
    let next = 0;
    for (let records = 0; ; records += 1) {
      if (!bytes.has(HEAD_BYTES)) await this.#more(bytes, HEAD_BYTES);
      const kind = bytes.uint8(0);
      const count = bytes.uint32(4);
      const cluster = bytes.uint64(8);
      bytes.skip(HEAD_BYTES);
      if (kind === KIND.end) {
        if (cluster !== records) throw this.#damage(`it should have ${cluster} records and has ${records}`);
        break;
      }
      if (count < 1 || cluster < next || cluster + count > clusters) {
        throw this.#damage(`record ${records} does not follow the one before it or leaves the disk`);
      }
      next = cluster + count;
      if (kind === KIND.data && count <= MAX_DATA_COUNT) {
        const length = count * digestSize;
        if (!bytes.has(length)) await this.#more(bytes, length);
        const digestsAt = bytes.position;
        yield { kind: "data", cluster, count, digestsAt, digests: bytes.take(length) };
      } else if (kind === KIND.zero) {
        yield { kind: "zero", cluster, count, digestsAt: bytes.position };
      } else if (kind === KIND.partial && count === 1) {
        if (!bytes.has(MASKS_BYTES)) await this.#more(bytes, MASKS_BYTES);
        const dataMask = bytes.uint32(0);
        const zeroMask = bytes.uint32(4);
        bytes.skip(MASKS_BYTES);
        if ((dataMask & zeroMask) !== 0) throw this.#damage(`the masks of record ${records} overlap`);
        const length = dataMask === 0 ? 0 : digestSize;
        if (!bytes.has(length)) await this.#more(bytes, length);
        const digestsAt = bytes.position;
        yield {
          kind: "partial",
          cluster,
          count: 1,
          dataMask,
          zeroMask,
          digestsAt,
          digests: bytes.take(length),
        };
      } else {
        throw this.#damage(`record ${records} is of the unknown kind ${kind}`);
      }
    }
    if (bytes.has(1) || (await bytes.more(1))) throw this.#damage("bytes follow its last record");
    if (sha256 !== undefined && bytes.sha256() !== sha256) {
      throw this.#damage("its SHA-256 is not the one in the manifest");
    }
  }

  /**
   * The digests of `count` clusters, from byte `position` of the file on, where {@link runs} has told that they are.
   * @throws {DamageError} the file ends before them
   */
  async digestsAt(position: number, count: number): Promise<Buffer> {
    const digests = Buffer.allocUnsafe(count * DIGEST_ALGORITHMS[this.header.algorithm].bytes);
    const { bytesRead } = await this.#file.read(digests, 0, digests.length, position);
    if (bytesRead < digests.length) throw this.#damage("it is shorter than it was");
    return digests;
  }

  async close(): Promise<void> {
    await this.#file.close();
  }

  async #more(bytes: SequentialFile, length: number): Promise<void> {
    if (!(await bytes.more(length))) throw this.#damage("it ends before its last record");
  }

  #damage(what: string): DamageError {
    return damagedFile(this.#path, what);
  }
}

/** Reads ahead in large blocks, in which the next bytes can be looked at, and digests what it read. */
class SequentialFile {
  readonly #file: FileHandle;
  readonly #hash = createHash("sha256");
  /** Read ahead; what comes before `at` was taken. */
  #block: Buffer = Buffer.alloc(0);
  #at = 0;
  /** Of the end of the block, in the file. */
  #end: number;

  constructor(file: FileHandle, position: number, before: Buffer) {
    this.#file = file;
    this.#end = position;
    this.#hash.update(before);
  }

  /** Of the next byte, in the file. */
  get position(): number {
    return this.#end - this.#block.length + this.#at;
  }

  /** Whether the next `length` bytes are at hand; if not, {@link more} has to be asked. */
  has(length: number): boolean {
    return this.#at + length <= this.#block.length;
  }

  /** Reads on until the next `length` bytes are at hand; false where the file ends before. */
  async more(length: number): Promise<boolean> {
    while (!this.has(length)) {
      const rest = this.#block.subarray(this.#at);
      const block = Buffer.allocUnsafe(Math.max(READ_BYTES, length));
      rest.copy(block);
      const free = block.length - rest.length;
      const { bytesRead } = await this.#file.read(block, rest.length, free, this.#end);
      if (bytesRead === 0) return false;
      this.#end += bytesRead;
      this.#block = block.subarray(0, rest.length + bytesRead);
      this.#at = 0;
      this.#hash.update(this.#block.subarray(rest.length));
    }
    return true;
  }

  uint8(at: number): number {
    return this.#block.readUInt8(this.#at + at);
  }

  uint32(at: number): number {
    return this.#block.readUInt32BE(this.#at + at);
  }

  uint64(at: number): number {
    return this.uint32(at) * 2 ** 32 + this.uint32(at + 4);
  }

  /** The next `length` bytes, which have to be at hand. */
  take(length: number): Buffer {
    this.skip(length);
    return this.#block.subarray(this.#at - length, this.#at);
  }

  skip(length: number): void {
    this.#at += length;
  }

  /** Of everything read; call it at the end. */
  sha256(): string {
    return this.#hash.digest("hex");
  }
}

/** A run as it was read: its digests begin at byte `digestsAt` of the file, for {@link DigestFileReader.digestsAt}. */
export type PlacedDigestRun = DigestRun & { readonly digestsAt: number };
