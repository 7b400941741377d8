import { createCipheriv, createHash, randomBytes } from "node:crypto";

/** Bytes of the generator's stream that are made at a time. */
const BLOCK = Buffer.alloc(4096);
/** Bytes of one number. */
const NUMBER_BYTES = 6;

/** A seed to be told to the user: 16 hexadecimal digits. */
export function newSeed(): string {
  return randomBytes(8).toString("hex");
}

/**
 * Random numbers that depend on the seed alone, so that a choice can be made again: the key stream of AES in
 * counter mode.
 */
export class SeededRandom {
  readonly #stream: { update(data: Buffer): Buffer };
  #block: Buffer = Buffer.alloc(0);
  #at = 0;

  constructor(seed: string) {
    const key = createHash("sha256").update(seed).digest().subarray(0, 16);
    this.#stream = createCipheriv("aes-128-ctr", key, Buffer.alloc(16));
  }

  /** More than 0 and less than 1, or 1 - 2^-48 at most. */
  fraction(): number {
    if (this.#at + NUMBER_BYTES > this.#block.length) {
      this.#block = this.#stream.update(BLOCK);
      this.#at = 0;
    }
    const number = this.#block.readUIntBE(this.#at, NUMBER_BYTES);
    this.#at += NUMBER_BYTES;
    return (number + 0.5) / 2 ** 48;
  }

  /** A whole number from 0 up to `end`, which is not included. */
  below(end: number): number {
    return Math.floor(this.fraction() * end);
  }
}
