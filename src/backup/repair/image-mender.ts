import type { ClusterMend, DamagedCluster } from "./mend-clusters.js";
import type { DigestsPlace } from "./remake-digests.js";

/** A refcount of an image that is wrong, or an entry of the refcount table that has to be zero. */
export interface WrongRefcount {
  /** Where in the file it is, in bytes. */
  readonly position: number;
  /** In bytes: 2 of a refcount, 8 of an entry of the table. */
  readonly length: 2 | 8;
  /** What it should be. */
  readonly refcount: number;
}

/** Takes what was found for one disk of a point, and mends its image. */
export interface ImageMender extends AsyncDisposable {
  /** Whether clusters and refcounts are in place only after `finish`. */
  readonly isDeferred: boolean;
  readonly digests: DigestsPlace;
  refcounts(entries: readonly WrongRefcount[]): Promise<void>;
  cluster(damaged: DamagedCluster, mend: ClusterMend): Promise<void>;
  /** Notes a damaged cluster that nothing mends. */
  leave(damaged: DamagedCluster): void;
  /**
   * Everything that was taken is in place afterwards.
   * @returns the guest offsets of clusters whose right content was gone when it was needed once more
   */
  finish(): Promise<ReadonlySet<number>>;
}
