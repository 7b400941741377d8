import { type JudgedPoint, judgePoints } from "../repository/judged-points.js";
import { ownersOf } from "../repository/point-owners.js";
import type { Repository } from "../repository/repository.js";

/** The points of one domain in one folder of a repository. */
export interface DomainPoints {
  /** The name of the folder. */
  readonly folder: string;
  /** What the newest readable point calls the domain; the folder's name if there is none. */
  readonly name: string;
  readonly uuid: string | null;
  /** Whether the folder has points of other domains too. */
  readonly isMixed: boolean;
  /** Oldest first. A point whose manifest can't be read counts to the domain of the folder's newest point. */
  readonly points: readonly JudgedPoint[];
}

/**
 * Judges the points of a folder as a reader, so that a prune waits meanwhile.
 * @returns one entry for each domain that has points there
 * @throws {DamageError} `E_LINK`: the folder is a link; {PreconditionError} `E_LOCKED`: a prune that died has
 *   to be finished first, and somebody writes; the file system's error; the signal's reason
 */
export async function domainsIn(
  repository: Repository,
  folder: string,
  signal?: AbortSignal,
): Promise<DomainPoints[]> {
  return pointsByDomain(
    folder,
    await repository.reading(folder, () => judgePoints(repository, folder), signal),
  );
}

/** @param judged all points of a folder, oldest first */
export function pointsByDomain(folder: string, judged: readonly JudgedPoint[]): DomainPoints[] {
  if (judged.length === 0) return [];
  const manifests = judged.flatMap(({ manifest }) => manifest ?? []);
  const owners = ownersOf(manifests);
  const uuids = [...new Set(owners.values())];
  const newest = owners.get(manifests.at(-1)?.id ?? "") ?? null;
  return (uuids.length === 0 ? [null] : uuids).map((uuid) => {
    const points = judged.filter(({ id }) => (owners.has(id) ? owners.get(id) : newest) === uuid);
    const name = points.findLast(({ manifest }) => manifest)?.manifest?.domain.name ?? folder;
    return { folder, name, uuid, isMixed: uuids.length > 1, points };
  });
}
