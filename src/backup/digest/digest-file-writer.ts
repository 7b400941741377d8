import { createHash } from "node:crypto";
import { clustersIn, type PlannedRun } from "../image/image.js";
import { createAt, type NewFile, type NewPlace } from "../image/new-file.js";
import { DIGEST_ALGORITHMS } from "./algorithms.js";
import type { DigestHeader } from "./digest-file.js";
import {
  encodeDigestHeader,
  encodeHead,
  HEAD_BYTES,
  HEADER_BYTES,
  KIND,
  MAX_DATA_COUNT,
  MAX_ZERO_COUNT,
  WRITE_BYTES,
} from "./digest-file.js";

/** Of one cluster: a record of its own, with its masks and its digest. */
const MOST_RECORD_BYTES = HEAD_BYTES + 8 + 32;

/** Writes a digest file from front to back. The format is drawn in digest-file.ts. */
export class DigestFileWriter {
  /** Undefined: only the file's SHA-256 is wanted. */
  readonly #file: NewFile | undefined;
  readonly #digestSize: number;
  readonly #hash = createHash("sha256");
  #pending: Buffer[] = [];
  #pendingBytes = 0;
  /** Bytes of the file so far. */
  #length = 0;
  /** The last write; each write begins after the one before it. */
  #tail: Promise<void> = Promise.resolve();
  #records = 0;
  /** The data record that the next data run may extend. */
  #open: { cluster: number; count: number; digests: Buffer[] } | undefined;

  private constructor(file: NewFile | undefined, header: DigestHeader) {
    this.#file = file;
    this.#digestSize = DIGEST_ALGORITHMS[header.algorithm].bytes;
    this.#append(encodeDigestHeader(header));
  }

  /** @throws the file system's error: EEXIST if the file exists */
  static async create(place: NewPlace, header: DigestHeader): Promise<DigestFileWriter> {
    const mostBytes = HEADER_BYTES + clustersIn(header.geometry) * MOST_RECORD_BYTES;
    return new DigestFileWriter(await createAt(place, { mostBytes, inOrder: true }), header);
  }

  /** A writer without a file, which only tells the SHA-256 that the file would have. */
  static withoutFile(header: DigestHeader): DigestFileWriter {
    return new DigestFileWriter(undefined, header);
  }

  /**
   * Adds a run. Runs must come in ascending order; adjacent data runs are joined.
   * @param digests one for each stored cluster; belongs to the writer from here on
   */
  add(run: PlannedRun, digests: Buffer): void {
    if (run.kind === "data") {
      for (let done = 0; done < run.count; ) {
        const count = Math.min(run.count - done, MAX_DATA_COUNT);
        const [from, to] = [done * this.#digestSize, (done + count) * this.#digestSize];
        this.#addData(run.cluster + done, count, digests.subarray(from, to));
        done += count;
      }
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
    const position = this.#length;
    this.#length += block.length;
    this.#tail = this.#tail.then(() => this.#file?.write(block, position));
    // finish() throws the failure; until then it must not count as unhandled.
    this.#tail.catch(() => undefined);
  }

  /**
   * Writes the end record and, with `sync`, flushes the file to stable storage.
   * @returns the SHA-256 of the whole file, in hexadecimal digits
   * @throws the file system's error of this or an earlier write
   */
  async finish(options: { readonly sync: boolean }): Promise<{ readonly sha256: string }> {
    this.#closeData();
    this.#append(encodeHead(KIND.end, 0, this.#records));
    this.#flush();
    await this.#tail;
    await this.#file?.finish(options);
    return { sha256: this.#hash.digest("hex") };
  }

  /** Waits for pending writes and closes the file, complete or not. */
  async close(): Promise<void> {
    await this.#tail.catch(() => undefined);
    await this.#file?.close();
  }
}
