/**
 * A buffer that is filled mostly from front to back. What is not written reads as zeroes, though the memory
 * was used before: only gaps are cleared.
 */
export class FilledBuffer {
  readonly memory: Buffer;
  /** Bytes at its front that were written or cleared. */
  #filled = 0;

  constructor(memory: Buffer) {
    this.memory = memory;
  }

  set(bytes: Uint8Array, at: number): void {
    this.#clearUpTo(at);
    this.memory.set(bytes, at);
    this.#filled = Math.max(this.#filled, at + bytes.length);
  }

  /** From `end` on it reads as zeroes. */
  cut(end: number): void {
    this.#filled = Math.min(this.#filled, end);
  }

  /** Its first bytes. */
  front(length: number): Buffer {
    this.#clearUpTo(length);
    return this.memory.subarray(0, length);
  }

  #clearUpTo(end: number): void {
    if (end <= this.#filled) return;
    this.memory.fill(0, this.#filled, end);
    this.#filled = end;
  }
}
