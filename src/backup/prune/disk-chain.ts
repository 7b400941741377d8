import type { Link } from "../chain/chain.js";
import type { Repository } from "../repository/repository.js";

/**
 * The layers of a merge: a disk of a point that stays, and its chain down to the oldest point that is
 * dropped.
 */
export interface DiskChain {
  readonly repository: Repository;
  readonly domain: string;
  /** Newest first: the staying point, then the dropped ones. */
  readonly links: readonly [Link, ...Link[]];
}
