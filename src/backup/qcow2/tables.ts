import type { StoredRun } from "../image/run-list.js";
import {
  ENTRY_BYTES,
  l2Entries,
  l2EntryBytes,
  REFCOUNT_BYTES,
  writeCompressedEntry,
  writeCopiedOffset,
  writeExtendedEntry,
  writeUint64,
  writeZeroEntry,
} from "./format.js";
import type { Layout } from "./layout.js";

/** The properties of an image that decide the form of its tables. */
interface TableShape {
  readonly clusterSize: number;
  readonly extended: boolean;
}

/** What L2 entries are made from: clusters in the same state, or one compressed cluster. */
export type TableRun = (StoredRun & { readonly streamBytes?: undefined }) | StoredStream;

interface StoredStream {
  readonly cluster: number;
  readonly count: 1;
  /** In bytes, not necessarily aligned. */
  readonly hostOffset: number;
  /** Length of the compressed cluster. */
  readonly streamBytes: number;
}

/** The part of a run that one L2 table describes; `table` is its index in the L1 table. */
type Piece = TableRun & { readonly table: number };

/** The number of L2 tables that describe the runs. Tables that would be empty aren't written. */
export function countL2Tables(runs: Iterable<TableRun>, { clusterSize, extended }: TableShape): number {
  const entries = l2Entries(clusterSize, extended);
  let count = 0;
  let next = 0;
  for (const { cluster, count: clusters } of runs) {
    const first = Math.max(next, Math.floor(cluster / entries));
    next = Math.floor((cluster + clusters - 1) / entries) + 1;
    count += next - first;
  }
  return count;
}

/**
 * The L2 tables that describe the runs, one at a time and in ascending order. `bytes` is always the same
 * buffer, which the next table overwrites.
 */
export function* l2Tables(
  runs: Iterable<TableRun>,
  shape: TableShape,
): Generator<{ readonly index: number; readonly bytes: Buffer }> {
  const bytes = Buffer.alloc(shape.clusterSize);
  let index: number | undefined;
  for (const piece of pieces(runs, l2Entries(shape.clusterSize, shape.extended))) {
    if (index !== undefined && index !== piece.table) {
      yield { index, bytes };
      bytes.fill(0);
    }
    index = piece.table;
    writeEntries(bytes, piece, shape);
  }
  if (index !== undefined) yield { index, bytes };
}

/** Splits runs where a new table begins. */
function* pieces(runs: Iterable<TableRun>, entries: number): Generator<Piece> {
  for (const run of runs) {
    if (run.streamBytes !== undefined) {
      yield { ...run, table: Math.floor(run.cluster / entries) };
      continue;
    }
    for (let done = 0; done < run.count; ) {
      const cluster = run.cluster + done;
      const table = Math.floor(cluster / entries);
      const count = Math.min(run.count - done, (table + 1) * entries - cluster);
      const { dataMask, zeroMask } = run;
      yield { table, cluster, count, hostCluster: run.hostCluster + done, dataMask, zeroMask };
      done += count;
    }
  }
}

function writeEntries(bytes: Buffer, piece: Piece, { clusterSize, extended }: TableShape): void {
  const entryBytes = l2EntryBytes(extended);
  const first = piece.cluster - piece.table * l2Entries(clusterSize, extended);
  if (piece.streamBytes !== undefined) {
    writeCompressedEntry(bytes, piece, clusterSize, first * entryBytes);
    return;
  }
  const { dataMask, zeroMask } = piece;
  for (let i = 0; i < piece.count; i += 1) {
    const at = (first + i) * entryBytes;
    const hostOffset = (piece.hostCluster + i) * clusterSize;
    if (extended) writeExtendedEntry(bytes, { hostOffset, dataMask, zeroMask }, at);
    else if (dataMask !== 0) writeCopiedOffset(bytes, hostOffset, at);
    else writeZeroEntry(bytes, at);
  }
}

/** The refcount table, which lists blocks that lie side by side. */
export function refcountTable(layout: Layout, clusterSize: number): Buffer {
  const table = Buffer.alloc(layout.refcountTableClusters * clusterSize);
  for (let i = 0; i < layout.refcountBlocks; i += 1) {
    writeUint64(table, layout.refcountBlocksOffset + i * clusterSize, i * ENTRY_BYTES);
  }
  return table;
}

/** Neighbouring clusters of the file with the same refcount. */
export interface HostUse {
  readonly first: number;
  readonly end: number;
  readonly refcount: number;
}

/** The clusters in which runs have data, in ascending order. */
export function* usesOfRuns(runs: Iterable<StoredRun>): Generator<HostUse> {
  for (const { hostCluster, count, dataMask } of runs) {
    if (dataMask !== 0) yield { first: hostCluster, end: hostCluster + count, refcount: 1 };
  }
}

/**
 * The refcount blocks, one at a time and in ascending order: 1 for the header and for tables, the counts in
 * `uses` for data, 0 for slots that stayed holes. The next block overwrites the buffer.
 */
export function* refcountBlocks(
  uses: Iterable<HostUse>,
  layout: Layout,
  clusterSize: number,
): Generator<Buffer> {
  const perBlock = clusterSize / REFCOUNT_BYTES;
  const block = Buffer.alloc(clusterSize);
  let index = 0;
  for (const used of allUses(uses, layout, clusterSize)) {
    for (let { first } = used; first < used.end; ) {
      for (; first >= (index + 1) * perBlock; index += 1) {
        yield block;
        block.fill(0);
      }
      const start = first - index * perBlock;
      const end = Math.min(used.end - index * perBlock, perBlock);
      for (let i = start; i < end; i += 1) block.writeUInt16BE(used.refcount, i * REFCOUNT_BYTES);
      first = index * perBlock + end;
    }
  }
  // The blocks themselves are the last clusters in use, so this is the last block.
  yield block;
}

function* allUses(uses: Iterable<HostUse>, layout: Layout, clusterSize: number): Generator<HostUse> {
  yield { first: 0, end: 1, refcount: 1 };
  yield* uses;
  yield { first: layout.l2Offset / clusterSize, end: layout.fileSize / clusterSize, refcount: 1 };
}
