import { isReaderGone, StandardOutput } from "./standard-output.js";

/** Large enough for few system calls, small enough for the processor's cache. */
const BLOCK = 256 * 1024;
/** Bytes that are held back: if the command fails before it has more, stdout contains only the error. */
const HELD_BACK = 4 * 1024 * 1024;
/** Most blocks that wait for the operating system. */
const AHEAD = 2;

/**
 * A result on stdout that is too large to hold in memory. It is collected in blocks, which are reused, and
 * written while the next ones are filled.
 */
export class ResultStream {
  #block = new Uint8Array(new ArrayBuffer(BLOCK));
  #filled = 0;
  #collected = 0;
  readonly #full: Uint8Array<ArrayBuffer>[] = [];
  readonly #free: ArrayBuffer[] = [];
  #writing: Promise<void> | undefined;
  #failure: { readonly reason: unknown } | undefined;
  #isGone = false;
  #isBegun = false;
  readonly #stdout = new StandardOutput();

  /** Whether a part of it has been written to stdout. */
  get begun(): boolean {
    return this.#isBegun;
  }

  /** The reader has closed the pipe and doesn't need the rest. */
  get gone(): boolean {
    return this.#isGone;
  }

  /** @param bytes copied; at most the size of a block */
  append(bytes: Uint8Array): void {
    if (this.#filled + bytes.length > BLOCK) this.#turn();
    this.#block.set(bytes, this.#filled);
    this.#filled += bytes.length;
  }

  /** Removes the last bytes that were appended. */
  takeBack(count: number): void {
    this.#filled -= count;
  }

  /** To be called regularly: waits while stdout is slower than the appended data. */
  async drain(): Promise<void> {
    if (this.#collected < HELD_BACK) return;
    this.#begin();
    while (this.#full.length > AHEAD) await this.#begin();
    this.#check();
  }

  /** Writes all remaining data. */
  async end(): Promise<void> {
    if (this.#filled > 0) this.#turn();
    while (this.#full.length > 0 || this.#writing !== undefined) await this.#begin();
    this.#check();
  }

  #turn(): void {
    this.#full.push(this.#block.subarray(0, this.#filled));
    this.#collected += this.#filled;
    this.#block = new Uint8Array(this.#free.pop() ?? new ArrayBuffer(BLOCK));
    this.#filled = 0;
  }

  #begin(): Promise<void> {
    this.#isBegun = true;
    this.#writing ??= this.#writeFull().finally(() => {
      this.#writing = undefined;
    });
    return this.#writing;
  }

  async #writeFull(): Promise<void> {
    for (let block = this.#full.shift(); block !== undefined; block = this.#full.shift()) {
      try {
        if (!this.#isGone) await this.#stdout.write(block);
      } catch (reason) {
        if (!isReaderGone(reason)) this.#failure ??= { reason };
        this.#isGone = true;
      }
      this.#free.push(block.buffer);
    }
  }

  #check(): void {
    if (this.#failure !== undefined) throw this.#failure.reason;
  }
}
