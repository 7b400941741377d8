import { closeSync, readSync } from "node:fs";
import { openPlainNow } from "../host/plain-files.js";
import type { ThreadService } from "../threads/thread-pool.js";
import type { DigestAlgorithm } from "./algorithms.js";
import { createDigester, type Digester } from "./digest.js";

/** Stretches of a file whose digests are wanted. */
export interface DigestQuestion {
  readonly path: string;
  /**
   * Three numbers for each stretch, in bytes: position, length and unit. Each `unit` bytes of the stretch get
   * one digest; the last digest covers the bytes that are left. A stretch with unit 0 has no digest of its
   * own: the next digest covers it and the stretches after it, up to and including the first one whose unit
   * isn't 0.
   */
  readonly stretches: Float64Array<ArrayBuffer>;
  /** The number of digests that the stretches get. */
  readonly digests: number;
}

/** Digests in the order of the stretches, one after the other. */
export type Digests = Uint8Array<ArrayBuffer>;

/** Path of a file about which no more questions come, so that it can be closed. */
export type ForgottenPath = string;

/** Bytes of one read, small enough to stay in the processor's cache until they are digested. */
const BLOCK = 256 * 1024;

/**
 * Reads stretches of files and digests them. One buffer is enough, since questions come one at a time. A file
 * stays open until a notice names it.
 */
export class DigestService implements ThreadService<DigestQuestion, Digests, ForgottenPath> {
  readonly #algorithm: DigestAlgorithm;
  /** Descriptors of open files, by path. */
  readonly #files = new Map<string, number>();
  /** Made for the first question. */
  #buffer = Buffer.alloc(0);

  constructor(algorithm: DigestAlgorithm) {
    this.#algorithm = algorithm;
  }

  async answer(question: DigestQuestion): Promise<Digests> {
    const digester = await createDigester(this.#algorithm);
    const digests = Buffer.from(new ArrayBuffer(question.digests * digester.size));
    this.#digestAll(question, digester, digests);
    return digests;
  }

  transfer(digests: Digests): readonly ArrayBuffer[] {
    return [digests.buffer];
  }

  onNotice(path: ForgottenPath): void {
    const file = this.#files.get(path);
    this.#files.delete(path);
    if (file !== undefined) closeSync(file);
  }

  async close(): Promise<void> {
    for (const path of [...this.#files.keys()]) this.onNotice(path);
  }

  #digestAll({ path, stretches }: DigestQuestion, digester: Digester, digests: Buffer): void {
    const file = this.#open(path);
    /** Bytes of `digests` that are filled. */
    let made = 0;
    /** Bytes of earlier stretches, with unit 0, that belong to the next digest. */
    let gathered = 0;
    for (let i = 0; i < stretches.length; i += 3) {
      const position = stretches[i] as number;
      const length = stretches[i + 1] as number;
      const unit = stretches[i + 2] as number;
      if (unit === 0 || gathered > 0) {
        this.#fill(file, position, gathered, length);
        gathered += length;
        if (unit === 0) continue;
        digester.digestInto(this.#buffer.subarray(0, gathered), digests, made);
        made += digester.size;
        gathered = 0;
        continue;
      }
      const step = Math.max(unit, BLOCK - (BLOCK % unit));
      for (let done = 0; done < length; done += step) {
        const block = Math.min(step, length - done);
        this.#fill(file, position + done, 0, block);
        for (let at = 0; at < block; at += unit) {
          digester.digestInto(this.#buffer.subarray(at, Math.min(at + unit, block)), digests, made);
          made += digester.size;
        }
      }
    }
  }

  #open(path: string): number {
    const file = this.#files.get(path) ?? openPlainNow(path);
    this.#files.set(path, file);
    return file;
  }

  /**
   * Reads `length` bytes from `position` of the file into the buffer, from byte `at` of the buffer on. The
   * buffer grows if necessary, and keeps the bytes before `at`.
   */
  #fill(file: number, position: number, at: number, length: number): void {
    if (this.#buffer.length < at + length) {
      const larger = Buffer.allocUnsafeSlow(Math.max(BLOCK, at + length));
      this.#buffer.copy(larger, 0, 0, at);
      this.#buffer = larger;
    }
    for (let done = 0; done < length; ) {
      const count = readSync(file, this.#buffer, at + done, length - done, position + done);
      if (count === 0)
        throw new Error(`the file ends at byte ${position + done}, in the middle of the stored data`);
      done += count;
    }
  }
}
