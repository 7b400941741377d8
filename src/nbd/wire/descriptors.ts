/**
 * The extents of a block-status reply, kept as received: a reply may hold a million of them, and sixteen
 * replies may be queued, so objects are created only on access.
 *
 *     request      |------------------------------|
 *     exact        |--data--|---zero---|---data---|
 *     short        |--data--|---zero---|               the rest has to be requested
 *     overshooting |--data--|---zero---|---data------|  only the last one may do so
 */

import { ProtocolError } from "../errors.js";
import { readUint64, viewOf } from "./bytes.js";

/** Bytes of a descriptor: two 32-bit numbers, or two of 64 bits with extended headers. */
export type DescriptorWidth = 8 | 16;

/** Most descriptors in one chunk. QEMU sends up to 131,072, nbdkit up to 2^20. */
export const MAX_DESCRIPTORS = 2 ** 20;

/**
 * | width | at | bytes | |
 * |---|---|---|---|
 * | 8 | 0 | 4 | length of the extent |
 * | 8 | 4 | 4 | flags, as the context defines them |
 * | 16 | 0 | 8 | length |
 * | 16 | 8 | 8 | flags |
 */
export class Descriptors {
  readonly count: number;
  readonly #view: DataView;
  readonly #width: DescriptorWidth;

  /** @param bytes a whole number of descriptors; owned by this object from then on */
  constructor(bytes: Uint8Array, width: DescriptorWidth) {
    this.count = bytes.length / width;
    this.#view = viewOf(bytes);
    this.#width = width;
  }

  /** Bytes held in memory. */
  get size(): number {
    return this.#view.byteLength;
  }

  lengthAt(index: number): number {
    const at = index * this.#width;
    return this.#width === 8 ? this.#view.getUint32(at) : readUint64(this.#view, at, "an extent's length");
  }

  flagsAt(index: number): number {
    const at = index * this.#width;
    return this.#width === 8
      ? this.#view.getUint32(at + 4)
      : readUint64(this.#view, at + 8, "an extent's flags");
  }

  /**
   * Checks the list as the reply to a request of `length` bytes: no empty extent, none after the end of the
   * request.
   * @returns the bytes that the list covers
   * @throws {ProtocolError}
   */
  validate(length: number, onlyOne: boolean): number {
    if (this.count === 0) throw new ProtocolError("the server sent a block status without any extent");
    let covered = 0;
    const { count } = this;
    for (let index = 0; index < count; index++) {
      if (covered >= length) {
        throw new ProtocolError("the server sent an extent that starts behind the end of the request");
      }
      const extent = this.lengthAt(index);
      if (extent === 0) throw new ProtocolError("the server sent an extent of zero length");
      if (this.#width === 16) this.flagsAt(index);
      covered += extent;
    }
    if (onlyOne && (this.count !== 1 || covered > length)) {
      throw new ProtocolError("the server sent more than the one extent that was asked for");
    }
    return covered;
  }
}
