import { BackupError, DamageError } from "../base/errors.js";
import type { ReadOptions } from "../image/image-file.js";
import { type FilePlace, openPlace, type ReadableFile } from "../image/readable-file.js";
import { type EntryContext, l2Entries } from "./format.js";
import { HEADER_FIRST_BYTES, headerBytesOf, INCOMPATIBLE, parseHeader, type Qcow2Header } from "./header.js";

/** A qcow2 image that is open for reading, with its header. The file isn't trusted. */
export class Qcow2File {
  readonly path: string;
  readonly header: Qcow2Header;
  readonly context: EntryContext;
  /** Guest clusters that one L2 table describes. */
  readonly l2Entries: number;
  readonly #file: ReadableFile;
  /** Length of the file when it was opened. */
  readonly #size: number;

  private constructor(file: ReadableFile, header: Qcow2Header, size: number) {
    const { version, clusterBits, clusterSize } = header;
    const extended = (header.incompatible & INCOMPATIBLE.EXTENDED_L2) !== 0;
    const fileEnd = Math.ceil(size / clusterSize) * clusterSize;
    this.path = file.path;
    this.header = header;
    this.context = { version, clusterBits, clusterSize, extended, fileEnd };
    this.l2Entries = l2Entries(clusterSize, extended);
    this.#file = file;
    this.#size = size;
  }

  /**
   * @throws {DamageError} the header is damaged
   * @throws {BackupError} the image uses features that can't be read
   * @throws the file system's error
   */
  static async open(place: FilePlace, options?: ReadOptions): Promise<Qcow2File> {
    const file = await openPlace(place, options);
    try {
      const size = await file.size();
      let head = await beginningOf(file, HEADER_FIRST_BYTES, size);
      const needed = headerBytesOf(head);
      if (needed > head.length) head = await beginningOf(file, needed, size);
      return new Qcow2File(file, parseHeader(head, size), size);
    } catch (error) {
      await file.close();
      throw error instanceof BackupError ? withPath(error, file.path) : error;
    }
  }

  /**
   * Fills `target` from `position`. As in QEMU, an incomplete last cluster continues with zeroes.
   * @throws {DamageError} the clusters asked for are not in the file
   */
  async read(target: Uint8Array, position: number): Promise<void> {
    const { fileEnd } = this.context;
    const end = position + target.length > fileEnd ? Number.POSITIVE_INFINITY : this.#size;
    await this.#file.fill(target, position, end);
  }

  async readTable(position: number, length: number): Promise<Buffer> {
    const table = Buffer.allocUnsafe(length);
    await this.read(table, position);
    return table;
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}

/** The first `length` bytes, or all if the file is shorter. */
async function beginningOf(file: ReadableFile, length: number, size: number): Promise<Buffer> {
  const bytes = Buffer.allocUnsafe(Math.min(length, size));
  await file.fill(bytes, 0, size);
  return bytes;
}

function withPath(error: BackupError, path: string): BackupError {
  const Kind = error instanceof DamageError ? DamageError : BackupError;
  const details = { ...error.details, path };
  return new Kind(error.code, `${path}: ${error.message}`, { cause: error.cause, details });
}
