import type { OnStep } from "../repository/finish-prune.js";
import type { Repository } from "../repository/repository.js";
import type { PrunedPoint } from "./decide.js";
import type { Merge } from "./prune-plan.js";
import type { Retention } from "./retention.js";

export interface PruneOptions {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  /**
   * Only points of this domain may go, where the folder has points of several: the UUID, its first digits, or
   * `none` for points of no known UUID. Undefined: of all of them, each domain by itself.
   */
  readonly uuid?: string | undefined;
  readonly retention: Retention;
  /** Ids of the only points that may go, if no rule keeps them. Undefined: every one may. */
  readonly mayGo?: ReadonlySet<string> | undefined;
  /** Only find out what would be done. */
  readonly dryRun: boolean;
  /** Flush merged data to stable storage. The journal always is flushed. */
  readonly sync: boolean;
  readonly signal?: AbortSignal | undefined;
  readonly onWarning?: ((message: string) => void) | undefined;
  /** Called with the bytes of a merged disk that have been walked over. */
  readonly onProgress?: ((disk: string, position: number, virtualSize: number) => void) | undefined;
  /** @internal tests end the process at each step */
  readonly onStep?: OnStep | undefined;
}

/** What was done with a domain's points; in a dry run what would be done. */
export interface PruneResult {
  readonly domain: string;
  /** Oldest first. */
  readonly points: readonly PrunedPoint[];
  readonly merges: readonly DoneMerge[];
  /** Bytes of data that were written, or would be. */
  readonly writtenBytes: number;
  /** Bytes that an object store has copied by itself, or would; 0 in a folder. */
  readonly copiedBytes: number;
  /**
   * By how many bytes the domain's use of the file system has shrunk; negative if it has grown; null in a dry
   * run.
   */
  readonly freedBytes: number | null;
}

export interface DoneMerge extends Merge {
  /** The point whose image took the clusters that it lacked; null: a new image was written. */
  readonly base: string | null;
  readonly writtenBytes: number;
  /** Bytes that an object store has copied by itself, or would; 0 in a folder. */
  readonly copiedBytes: number;
}

/** The bytes of all merges. */
export function bytesOf(merges: readonly DoneMerge[]): Pick<PruneResult, "writtenBytes" | "copiedBytes"> {
  const sum = (one: (merge: DoneMerge) => number): number =>
    merges.reduce((total, merge) => total + one(merge), 0);
  return { writtenBytes: sum((merge) => merge.writtenBytes), copiedBytes: sum((merge) => merge.copiedBytes) };
}
