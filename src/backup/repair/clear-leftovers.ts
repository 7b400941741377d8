import { hasCode } from "../base/errors.js";
import type { Repository } from "../repository/repository.js";
import type { StoredLeftovers } from "../storage/stored-writing.js";

interface ClearOptions {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  /** Only find out what is there, which may be a run's that is under way. */
  readonly dryRun: boolean;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Removes what killed runs have left of a domain in an object store: objects that no manifest names, and
 * uploads. Most of it has a note, and any run that writes there removes it; what came late has none.
 * @returns what was removed, or would be
 * @throws {PreconditionError} `E_LOCKED`: another process writes points of the domain
 */
export async function clearLeftovers({
  repository,
  domain,
  dryRun,
  signal,
}: ClearOptions): Promise<readonly StoredLeftovers[]> {
  const left = await repository.leftInStore(domain, signal);
  if (dryRun || left.length === 0) return left;
  const late = left.filter(({ isNoted }) => !isNoted);
  try {
    await repository.writingInStore(
      domain,
      async (writing) => {
        for (const { id } of late) await writing.clearPoint(id, { signal: writing.over });
      },
      signal,
    );
    return left;
  } catch (error) {
    // What has a note is of the run that is under way.
    if (late.length === 0 && hasCode(error, "E_LOCKED")) return [];
    throw error;
  }
}
