import { damageIn } from "../base/damage.js";
import { decodeL1Entry, ENTRY_BYTES } from "./format.js";
import type { Qcow2File } from "./open.js";

/**
 * The L2 tables of an image for a walk over all of them, read together where they follow one another in the
 * file: of a file elsewhere, each read takes as long as an answer does.
 */
export class TableBatches {
  readonly #file: Qcow2File;
  readonly #l1: Buffer;
  /** Tables in a batch. */
  readonly #most: number;
  #batch: ReadonlyMap<number, Buffer> = new Map();
  /** Index of the first table that is not to be read alone. */
  #next = 0;

  /** @param most bytes of a batch; with less than two tables nothing is read together */
  constructor(file: Qcow2File, l1: Buffer, most: number) {
    this.#file = file;
    this.#l1 = l1;
    this.#most = Math.floor(most / file.context.clusterSize);
  }

  /**
   * The table of an L1 entry. The walk goes upwards.
   * @returns undefined: it is to be read alone, or there is none
   * @throws errors that don't concern the image
   */
  async table(index: number): Promise<Buffer | undefined> {
    const known = this.#batch.get(index);
    if (known || this.#most < 2 || index < this.#next) return known;
    const start = this.#placeOf(index);
    if (start === undefined) return undefined;
    const { clusterSize } = this.#file.context;
    const indices = [index];
    for (
      let next = index + 1;
      next < this.#l1.length / ENTRY_BYTES && indices.length < this.#most;
      next += 1
    ) {
      if (decodeL1Entry(this.#l1, next, this.#file.context).kind === "none") continue;
      if (this.#placeOf(next) !== start + indices.length * clusterSize) break;
      indices.push(next);
    }
    this.#batch = new Map();
    if (indices.length === 1) return undefined;
    try {
      const bytes = await this.#file.readTable(start, indices.length * clusterSize);
      const tableAt = (i: number): Buffer => bytes.subarray(i * clusterSize, (i + 1) * clusterSize);
      this.#batch = new Map(indices.map((each, i) => [each, tableAt(i)]));
    } catch (error) {
      if (damageIn(error) === undefined) throw error;
      // Read alone, the damaged one tells of itself.
      this.#next = (indices.at(-1) ?? index) + 1;
    }
    return this.#batch.get(index);
  }

  #placeOf(index: number): number | undefined {
    const entry = decodeL1Entry(this.#l1, index, this.#file.context);
    return entry.kind === "table" ? entry.hostOffset : undefined;
  }
}
