import { UsageError } from "../base/errors.js";
import { clustersIn, type Geometry } from "../image/image.js";
import { ENTRY_BYTES, LIMITS, l2Entries, REFCOUNT_BYTES } from "./format.js";

/**
 * Where everything goes in a new image: data first, in guest order, tables after it.
 *
 *     cluster 0 |1      ...       dataEnd|
 *     | header  | data of guest clusters | L2 tables | L1 table | refcount table | refcount blocks |
 *               | rank 0 | rank 1 | ...  |
 *
 * So the place of a guest cluster depends only on the number of clusters stored before it, and is known long
 * before the rest of the disk is. Offsets in bytes.
 */
export interface Layout {
  readonly l2Offset: number;
  readonly l1Offset: number;
  readonly l1Entries: number;
  readonly l1Clusters: number;
  readonly refcountTableOffset: number;
  readonly refcountTableClusters: number;
  readonly refcountBlocksOffset: number;
  readonly refcountBlocks: number;
  readonly fileSize: number;
}

interface Contents {
  readonly geometry: Geometry;
  readonly extended: boolean;
  /** Clusters from the beginning of the file to the end of the data. */
  readonly dataEnd: number;
  readonly l2Tables: number;
}

export function layOut({ geometry, extended, dataEnd, l2Tables }: Contents): Layout {
  const { clusterSize } = geometry;
  const l1Entries = Math.ceil(clustersIn(geometry) / l2Entries(clusterSize, extended));
  const l1Clusters = Math.ceil((l1Entries * ENTRY_BYTES) / clusterSize);
  const l1 = dataEnd + l2Tables;
  const refcountTable = l1 + l1Clusters;
  const refcounts = refcountClusters(refcountTable, clusterSize);
  const refcountBlocks = refcountTable + refcounts.table;
  return {
    l2Offset: dataEnd * clusterSize,
    l1Offset: l1 * clusterSize,
    l1Entries,
    l1Clusters,
    refcountTableOffset: refcountTable * clusterSize,
    refcountTableClusters: refcounts.table,
    refcountBlocksOffset: refcountBlocks * clusterSize,
    refcountBlocks: refcounts.blocks,
    fileSize: (refcountBlocks + refcounts.blocks) * clusterSize,
  };
}

/**
 * The number of refcount blocks, and of clusters for the table that lists them, that it takes to count
 * `others` clusters and the blocks and table themselves: the smallest solution of
 *
 *     blocks = ceil((others + blocks + table) / refcounts in a block)
 *     table  = ceil(blocks / entries in a cluster)
 *
 * Starting at 0, each step is at most the solution, so the loop ends there.
 */
export function refcountClusters(others: number, clusterSize: number): { blocks: number; table: number } {
  let blocks = 0;
  let table = 0;
  for (;;) {
    const nextBlocks = Math.ceil((others + blocks + table) / (clusterSize / REFCOUNT_BYTES));
    const nextTable = Math.ceil(nextBlocks / (clusterSize / ENTRY_BYTES));
    if (nextBlocks === blocks && nextTable === table) return { blocks, table };
    blocks = nextBlocks;
    table = nextTable;
  }
}

/**
 * Checks, before the first byte is stored, that the tables fit even if the whole disk is data.
 * @throws {UsageError} the disk needs larger clusters
 */
export function assertFits(geometry: Geometry, extended: boolean): void {
  const { virtualSize, clusterSize } = geometry;
  const clusters = clustersIn(geometry);
  const l2Tables = Math.ceil(clusters / l2Entries(clusterSize, extended));
  const layout = layOut({ geometry, extended, dataEnd: 1 + clusters, l2Tables });
  const fits =
    layout.l1Entries * ENTRY_BYTES <= LIMITS.l1Table &&
    layout.refcountTableClusters * clusterSize <= LIMITS.refcountTable &&
    Number.isSafeInteger(layout.fileSize);
  if (fits) return;
  throw new UsageError(
    "E_QCOW2_LIMIT",
    `a disk of ${virtualSize} bytes is too large for qcow2 clusters of ${clusterSize} bytes` +
      `${extended ? " with subclusters" : ""}: use larger clusters`,
    { details: { virtualSize, clusterSize } },
  );
}
