import type { NewFile } from "../image/new-file.js";

/** Neighbouring pieces are collected into writes of up to this size. */
const COLLECT_BYTES = 512 * 1024;

/**
 * Joins many small pieces, most of which continue the one before, into larger writes. `flush` writes what is
 * left.
 */
export class CollectedWrites {
  readonly #file: Pick<NewFile, "writeNow">;
  readonly #buffer = Buffer.allocUnsafeSlow(COLLECT_BYTES);
  /** Where in the file the buffer goes, and how many bytes it holds. */
  #position = 0;
  #filled = 0;

  constructor(file: Pick<NewFile, "writeNow">) {
    this.#file = file;
  }

  /** Copies or writes `data`, of any length, before it returns. */
  write(data: Uint8Array, position: number): void {
    const goesOn = position === this.#position + this.#filled;
    if (!goesOn || this.#filled + data.length > COLLECT_BYTES) this.flush();
    if (data.length >= COLLECT_BYTES) {
      this.#file.writeNow(data, position);
      return;
    }
    if (this.#filled === 0) this.#position = position;
    this.#buffer.set(data, this.#filled);
    this.#filled += data.length;
  }

  /** @throws the file system's error; what could not be written is not kept */
  flush(): void {
    const bytes = this.#buffer.subarray(0, this.#filled);
    this.#filled = 0;
    if (bytes.length > 0) this.#file.writeNow(bytes, this.#position);
  }
}
