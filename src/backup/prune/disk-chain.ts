import { join } from "node:path";
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

/** The path of a link's image, by the link's index in the chain. */
export function imagePath({ repository, domain, links }: DiskChain, index: number): string {
  const link = links[index];
  if (!link) throw new RangeError(`the chain has no link ${index}`);
  return join(repository.pointFolder(domain, link.point.id), link.disk.file);
}
