import { DamageError } from "../base/errors.js";
import type { Link } from "../chain/chain.js";
import { findParentLink } from "../chain/chain.js";
import type { Repository } from "../repository/repository.js";
import type { Merge } from "./prune-plan.js";

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

/** The links of a merge, as the manifests describe them: the staying point, then the dropped ones. */
export async function chainOf(
  { repository, domain }: Pick<DiskChain, "repository" | "domain">,
  merge: Pick<Merge, "child" | "disk" | "dropped">,
): Promise<DiskChain> {
  const point = await repository.point(domain, merge.child);
  const disk = point.disks.find(({ name }) => name === merge.disk);
  if (!disk) throw new RangeError(`${merge.child} has no disk ${merge.disk}`);
  const links: [Link, ...Link[]] = [{ point, disk }];
  for (const id of merge.dropped) {
    const child = links.at(-1) ?? links[0];
    if (child.disk.parent !== id) {
      const message = `${merge.disk} of point ${child.point.id} is based on ${child.disk.parent}, and the prune takes it to be based on ${id}: nothing was changed`;
      throw new DamageError("E_PRUNE_JOURNAL", message, { details: { domain, point: child.point.id } });
    }
    links.push(await findParentLink(repository, domain, child));
  }
  return { repository, domain, links };
}
