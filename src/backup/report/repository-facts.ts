/**
 * The report room tells what there is: of each domain its last good point, sizes, rates and what can't be
 * restored, where on the disks what was written, and how two points differ. It reads only.
 *
 * Read this file first: it goes through a repository, and what can't be read there hides nothing else. Then
 * domain-points.ts (whose the points of a folder are), domain-facts.ts (what follows from manifests alone),
 * change-map.ts (what the tables of increments tell) and point-difference.ts.
 *
 * Nothing here knows libvirt, NBD, or how a report is shown.
 */

import { hasCode } from "../base/errors.js";
import { LOST_AND_FOUND } from "../repository/folder-name.js";
import { judgePoints } from "../repository/judged-points.js";
import type { Repository } from "../repository/repository.js";
import { type ChangeMap, changeMaps } from "./change-map.js";
import { type DomainFacts, factsOf } from "./domain-facts.js";
import { type DomainPoints, pointsByDomain } from "./domain-points.js";

export interface ReportedDomain extends DomainFacts {
  /** Of each disk of its newest readable point. */
  readonly maps: readonly ChangeMap[];
}

/** A folder that could not be read, and why. */
interface UnreadFolder {
  readonly folder: string;
  readonly error: unknown;
}

/**
 * The domains of a repository, in the order of their folders. A folder that can't be read is told in its
 * place.
 * @param now in milliseconds since 1970
 * @param maxAgeSeconds what was promised
 * @throws the file system's error, if the repository itself can't be read; the signal's reason
 */
export async function* reportedDomains(
  repository: Repository,
  {
    now,
    maxAgeSeconds,
    signal,
  }: { readonly now: number; readonly maxAgeSeconds: number; readonly signal?: AbortSignal | undefined },
): AsyncGenerator<ReportedDomain | UnreadFolder> {
  for (const folder of await repository.folders()) {
    signal?.throwIfAborted();
    try {
      // Whoever reads leaves a mark for prunes, which a folder that is no domain's shall not get.
      if ((await repository.pointNames(folder)).length === 0) continue;
      const found = await repository.reading(
        folder,
        async () => {
          const domains = pointsByDomain(folder, await judgePoints(repository, folder));
          return await Promise.all(domains.map((domain) => withMaps(repository, domain, signal)));
        },
        signal,
      );
      for (const { domain, maps } of found) yield { ...factsOf(domain, { now, maxAgeSeconds }), maps };
    } catch (error) {
      signal?.throwIfAborted();
      // The file system's own, which only root may read.
      if (folder === LOST_AND_FOUND && hasCode(error, "EACCES")) continue;
      yield { folder, error };
    }
  }
}

async function withMaps(
  repository: Repository,
  domain: DomainPoints,
  signal: AbortSignal | undefined,
): Promise<{ readonly domain: DomainPoints; readonly maps: readonly ChangeMap[] }> {
  const manifests = domain.points.flatMap(({ manifest }) => manifest ?? []);
  return { domain, maps: await changeMaps(repository, domain.folder, manifests, signal) };
}
