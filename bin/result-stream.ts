import { fstatSync, write as writeToFile } from "node:fs";

/** Large enough for few system calls, small enough to stay in the processor's cache. */
const BLOCK = 256 * 1024;
/** So much is held back: a failure until then leaves stdout to the error alone. */
const HELD_BACK = 4 * 1024 * 1024;
/** Blocks that may wait for the operating system. */
const AHEAD = 2;
const STDOUT = 1;

/**
 * A result on stdout that is too large to be held as a whole. It is collected in blocks, which are used again and again,
 * and written while the next ones are being filled.
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
  #isFile: boolean | undefined;

  /** Whether some of it is on stdout already. */
  get begun(): boolean {
    return this.#isBegun;
  }

  /** The reader went away: nobody wants the rest. */
  get gone(): boolean {
    return this.#isGone;
  }

  /** @param bytes copied; not more than fit a block */
  append(bytes: Uint8Array): void {
    if (this.#filled + bytes.length > BLOCK) this.#turn();
    this.#block.set(bytes, this.#filled);
    this.#filled += bytes.length;
  }

  /** Of what was appended last the last bytes. */
  takeBack(count: number): void {
    this.#filled -= count;
  }

  /** To be called now and then: waits while stdout is slower than what is appended. */
  async drain(): Promise<void> {
    if (this.#collected < HELD_BACK) return;
    this.#begin();
    while (this.#full.length > AHEAD) await this.#begin();
    this.#check();
  }

  /** Writes all that is left. */
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
        if (!this.#isGone) await this.#write(block);
      } catch (reason) {
        if ((reason as NodeJS.ErrnoException).code !== "EPIPE") this.#failure ??= { reason };
        this.#isGone = true;
      }
      this.#free.push(block.buffer);
    }
  }

  /** Node writes to files on the main thread, where it would hold up everything else. */
  async #write(block: Uint8Array): Promise<void> {
    this.#isFile ??= fstatSync(STDOUT).isFile();
    if (!this.#isFile) return await written((done) => process.stdout.write(block, done));
    for (let at = 0; at < block.length; ) {
      at += await written<number>((done) => writeToFile(STDOUT, block, at, block.length - at, null, done));
    }
  }

  #check(): void {
    if (this.#failure !== undefined) throw this.#failure.reason;
  }
}

function written<T = void>(
  start: (done: (error: Error | null | undefined, result: T) => void) => void,
): Promise<T> {
  return new Promise((resolve, reject) => {
    start((error, result) => {
      if (error) reject(error);
      else resolve(result);
    });
  });
}
