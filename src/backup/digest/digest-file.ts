import { createHash } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import { DamageError } from "../base/errors.js";
import type { Geometry, PlannedRun } from "../image/image.js";
import { DIGEST_ALGORITHMS, type DigestAlgorithm } from "./digest.js";
/**
 * The digest file: what every cluster that a point defines must be. Docs/repository-format.md has the same tables
 * for readers without this program. All numbers are unsigned and big-endian.
 *
 *     header, 64 bytes
 *       0   8  magic "NBDPDGST"
 *       8   4  version, 1
 *      12   4  algorithm: 1 XXH64 (seed 0, 8 bytes big-endian), 2 SHA-256 (32 bytes)
 *      16   4  cluster size
 *      20   4  flags: bit 0 = complete, every cluster that no record names reads as zeroes (a full copy);
 *              otherwise such a cluster is clean: the parent's
 *      24   8  virtual size in bytes
 *      32  32  zero
 *     records, ascending by cluster, never overlapping
 *       0   1  kind: 1 data, 2 zero, 3 partial, 255 end
 *       1   3  zero
 *       4   4  count: clusters (end: 0)
 *       8   8  first cluster (end: the number of records before it)
 *      16   8  partial only: data mask, zero mask, 4 bytes each, bit 0 = the first of 32 subclusters
 *       .   .  digests: one a cluster for data, one for partial with a data mask, none otherwise
 *
 * The digest of a data cluster covers its bytes, cut off at the virtual size. That of a partial cluster covers its
 * data subclusters only, one after the other, cut off likewise.
 */
export type DigestRun =
  | { readonly kind: "data"; readonly cluster: number; readonly count: number; readonly digests: Buffer }
  | { readonly kind: "zero"; readonly cluster: number; readonly count: number }
  | {
      readonly kind: "partial";
      readonly cluster: number;
      readonly count: 1;
      readonly dataMask: number;
      readonly zeroMask: number;
      readonly digests: Buffer;
    };

/** A run as it was read: its digests begin at byte `digestsAt` of the file, for {@link DigestFileReader.digestsAt}. */
export type PlacedDigestRun = DigestRun & { readonly digestsAt: number };

export interface DigestHeader {
  readonly algorithm: DigestAlgorithm;
  readonly geometry: Geometry;
  readonly complete: boolean;
}

const MAGIC = Buffer.from("NBDPDGST", "latin1");
const VERSION = 1;
const HEADER_BYTES = 64;
const HEAD_BYTES = 16;
const MASKS_BYTES = 8;
const KIND = { data: 1, zero: 2, partial: 3, end: 255 } as const;
/** Data records are closed here, so that a reader never has to hold more than 2 MiB of digests. */
const MAX_DATA_COUNT = 65_536;
const MAX_ZERO_COUNT = 0xffffffff;
const WRITE_BYTES = 1024 * 1024;
/** Read ahead of a walk, for each file of a chain. */
const READ_BYTES = 256 * 1024;

/** Writes a digest file from front to back. */
export class DigestFileWriter {
  readonly #file: FileHandle;
  readonly #digestSize: number;
  readonly #hash = createHash("sha256");
  #pending: Buffer[] = [];
  #pendingBytes = 0;
  #tail: Promise<void> = Promise.resolve();
  #records = 0;
  #open: { cluster: number; count: number; digests: Buffer[] } | undefined;

  private constructor(file: FileHandle, header: DigestHeader) {
    this.#file = file;
    this.#digestSize = DIGEST_ALGORITHMS[header.algorithm].bytes;
    this.#append(encodeHeader(header));
  }

  /** @throws the file system's error; EEXIST where the file is there already */
  static async create(path: string, header: DigestHeader): Promise<DigestFileWriter> {
    return new DigestFileWriter(await open(path, "wx", 0o640), header);
  }

  /**
   * Runs come in ascending order; neighbouring data runs are joined. `digests` (of as many clusters as the run
   * stores) belongs to the file from here on.
   */
  add(run: PlannedRun, digests: Buffer): void {
    if (run.kind === "data") {
      this.#addData(run.cluster, run.count, digests);
      return;
    }
    this.#closeData();
    if (run.kind === "partial") {
      const head = Buffer.alloc(HEAD_BYTES + 8);
      encodeHead(KIND.partial, 1, run.cluster).copy(head);
      head.writeUInt32BE(run.dataMask, HEAD_BYTES);
      head.writeUInt32BE(run.zeroMask, HEAD_BYTES + 4);
      this.#record(head);
      this.#append(digests);
      return;
    }
    for (let done = 0; done < run.count; ) {
      const count = Math.min(run.count - done, MAX_ZERO_COUNT);
      this.#record(encodeHead(KIND.zero, count, run.cluster + done));
      done += count;
    }
  }

  #addData(cluster: number, count: number, digests: Buffer): void {
    const last = this.#open;
    if (last && last.cluster + last.count === cluster && last.count + count <= MAX_DATA_COUNT) {
      last.count += count;
      last.digests.push(digests);
      return;
    }
    this.#closeData();
    this.#open = { cluster, count, digests: [digests] };
  }

  #closeData(): void {
    const run = this.#open;
    if (!run) return;
    this.#open = undefined;
    this.#record(encodeHead(KIND.data, run.count, run.cluster));
    this.#append(Buffer.concat(run.digests, run.count * this.#digestSize));
  }

  #record(head: Buffer): void {
    this.#records += 1;
    this.#append(head);
  }

  #append(bytes: Buffer): void {
    this.#pending.push(bytes);
    this.#pendingBytes += bytes.length;
    if (this.#pendingBytes >= WRITE_BYTES) this.#flush();
  }

  #flush(): void {
    const block = Buffer.concat(this.#pending, this.#pendingBytes);
    this.#pending = [];
    this.#pendingBytes = 0;
    this.#hash.update(block);
    this.#tail = this.#tail.then(() => this.#file.appendFile(block));
    // The failure is thrown by finish(); until then it must not count as unhandled.
    this.#tail.catch(() => undefined);
  }

  /**
   * Ends the file.
   * @returns the SHA-256 of the whole file, in hexadecimal digits
   * @throws the file system's error of this or an earlier write
   */
  async finish(options: { readonly sync: boolean }): Promise<{ readonly sha256: string }> {
    this.#closeData();
    this.#append(encodeHead(KIND.end, 0, this.#records));
    this.#flush();
    await this.#tail;
    if (options.sync) await this.#file.sync();
    return { sha256: this.#hash.digest("hex") };
  }

  /** Closes the file, finished or not. */
  async close(): Promise<void> {
    await this.#tail.catch(() => undefined);
    await this.#file.close();
  }
}

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

function encodeHeader(header: DigestHeader): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES);
  MAGIC.copy(bytes);
  bytes.writeUInt32BE(VERSION, 8);
  bytes.writeUInt32BE(DIGEST_ALGORITHMS[header.algorithm].id, 12);
  bytes.writeUInt32BE(header.geometry.clusterSize, 16);
  bytes.writeUInt32BE(header.complete ? 1 : 0, 20);
  bytes.writeBigUInt64BE(BigInt(header.geometry.virtualSize), 24);
  return bytes;
}

function decodeHeader(bytes: Buffer, path: string): DigestHeader {
  if (bytes.length < HEADER_BYTES || !bytes.subarray(0, MAGIC.length).equals(MAGIC)) {
    throw damagedFile(path, "it does not begin as a digest file does");
  }
  const version = bytes.readUInt32BE(8);
  if (version !== VERSION) throw damagedFile(path, `its version ${version} is unknown to this program`);
  const id = bytes.readUInt32BE(12);
  const algorithm = (["xxh64", "sha256"] as const).find((name) => DIGEST_ALGORITHMS[name].id === id);
  if (!algorithm) throw damagedFile(path, `its digest algorithm ${id} is unknown to this program`);
  const clusterSize = bytes.readUInt32BE(16);
  const virtualSize = Number(bytes.readBigUInt64BE(24));
  if (clusterSize < 512 || (clusterSize & (clusterSize - 1)) !== 0 || !Number.isSafeInteger(virtualSize)) {
    throw damagedFile(path, "its sizes make no sense");
  }
  return {
    algorithm,
    geometry: { clusterSize, virtualSize },
    complete: (bytes.readUInt32BE(20) & 1) === 1,
  };
}

function encodeHead(kind: number, count: number, cluster: number): Buffer {
  const head = Buffer.alloc(HEAD_BYTES);
  head.writeUInt8(kind, 0);
  head.writeUInt32BE(count, 4);
  head.writeBigUInt64BE(BigInt(cluster), 8);
  return head;
}

function damagedFile(path: string, what: string): DamageError {
  return new DamageError("E_DIGEST_FILE", `the digest file ${path} is damaged: ${what}`, {
    details: { path },
  });
}
