import { ALLOCATION, DIRTY, type NbdClient } from "../../nbd/index.js";
import { ALLOCATION_CONTEXT, dirtyContext } from "./export-extents.js";

/**
 * Neighbouring cells that are clean throughout. A *cell* is an aligned stretch of the disk, of a size that
 * the caller chooses; the last one ends with the disk. Offset and length are bytes.
 */
export interface CleanCells {
  readonly offset: number;
  readonly length: number;
  /** The server says that all bytes read as zeroes. If false, they may hold anything. */
  readonly readAsZeroes: boolean;
}

/**
 * The cells that a dirty bitmap calls clean throughout, in guest order. Neighbours that read alike come
 * together, as far as they were reported together.
 *
 *     cells      |        |        |        |        |
 *     dirty                   xx
 *     zeroes      zzzzzzzzzzzzzzzzzzzzzz
 *     result     |  zero  |        |  other |  other |
 *
 * @param cellBytes a power of two
 * @throws {NbdError} block status failed, or left a part of the export out
 */
export async function* cleanCells(
  client: NbdClient,
  {
    bitmap,
    cellBytes,
    signal,
  }: { readonly bitmap: string; readonly cellBytes: number; readonly signal: AbortSignal },
): AsyncGenerator<CleanCells> {
  const { size } = client.export;
  if (size === 0) return;
  const dirtyName = dirtyContext(bitmap);
  const cutter = new CellCutter(cellBytes, size);
  for await (const { offset, length, runs } of client.blockStatus({ signal })) {
    const dirty = runs.get(dirtyName);
    if (dirty === undefined) throw new Error(`${dirtyName} was not negotiated`);
    const allocation = runs.get(ALLOCATION_CONTEXT);
    let inDirty = 0;
    let inAllocation = 0;
    for (let at = offset; at < offset + length; ) {
      while ((dirty.ends[inDirty] ?? Number.POSITIVE_INFINITY) <= at) inDirty += 1;
      while ((allocation?.ends[inAllocation] ?? Number.POSITIVE_INFINITY) <= at) inAllocation += 1;
      const end = Math.min(dirty.ends[inDirty] ?? size, allocation?.ends[inAllocation] ?? size);
      const clean = ((dirty.flags[inDirty] ?? 0) & DIRTY) === 0;
      const zero = ((allocation?.flags[inAllocation] ?? 0) & ALLOCATION.ZERO) !== 0;
      yield* cutter.cut(at, end, { clean, zero });
      at = end;
    }
  }
}

interface CellState {
  readonly clean: boolean;
  readonly zero: boolean;
}

/** Joins stretches to cells: a cell is clean, or zero, if all stretches in it are. */
class CellCutter {
  readonly #cellBytes: number;
  readonly #size: number;
  /** The cell in which the last stretch ended, if that was inside it. */
  #begun: CellState | undefined;

  constructor(cellBytes: number, size: number) {
    this.#cellBytes = cellBytes;
    this.#size = size;
  }

  /** The clean cells that end in this stretch, which begins where the last one ended. */
  *cut(offset: number, end: number, state: CellState): Generator<CleanCells> {
    const cellBytes = this.#cellBytes;
    let start = offset;
    if (this.#begun !== undefined) {
      const cell = Math.floor(offset / cellBytes) * cellBytes;
      const cellEnd = Math.min(cell + cellBytes, this.#size);
      const both = { clean: this.#begun.clean && state.clean, zero: this.#begun.zero && state.zero };
      if (end < cellEnd) {
        this.#begun = both;
        return;
      }
      this.#begun = undefined;
      if (both.clean) yield { offset: cell, length: cellEnd - cell, readAsZeroes: both.zero };
      start = cellEnd;
    }
    const stop = end === this.#size ? end : Math.floor(end / cellBytes) * cellBytes;
    if (stop > start && state.clean) yield { offset: start, length: stop - start, readAsZeroes: state.zero };
    if (end > Math.max(start, stop)) this.#begun = state;
  }
}
