import { messageOf } from "../base/errors.js";
import { Grace } from "../base/grace.js";
import type { CheckpointRecord } from "../guest/checkpoint-record.js";
import { clearFolder } from "../guest/claim.js";
import { type Guest, retireCheckpoints } from "../guest/guest.js";
import type { JobClients } from "../guest/job-clients.js";
import type { JobFolder } from "../guest/job-folder.js";
import { neededCheckpoints } from "../guest/needed-checkpoints.js";
import { domainFolder, foldersNamed } from "../repository/domain-folder.js";
import type { Manifest } from "../repository/manifest.js";
import { pointsOf } from "../repository/point-owners.js";

/** How long a store is asked after a signal which checkpoints are needed, when the job has ended. */
const GRACE_MS = 5_000;

interface WarningOptions {
  readonly onWarning?: ((message: string) => void) | undefined;
}

interface ClearOptions extends WarningOptions {
  /** That of the work, which may have fired. */
  readonly signal?: AbortSignal | undefined;
}

/** The checkpoints of a run. */
export interface Made {
  /** Names of those that it tried to create. */
  readonly names: string[];
  /** Those of earlier runs too. */
  readonly record: CheckpointRecord;
}

/** What a run has made outside of the repository and has to remove. */
export interface Traces {
  readonly folder: JobFolder;
  readonly made: Made;
  readonly clients: JobClients;
  /** The job has ended, and the folder is gone: what is there from now on is another backup's. */
  isCleared: boolean;
}

/** The next backup removes what this can't. */
export async function clearAfterFailure(
  guest: Guest,
  { folder, made, clients, isCleared }: Omit<Traces, "made"> & { readonly made: Made | undefined },
  options: ClearOptions,
): Promise<void> {
  try {
    if (!isCleared) await clearFolder(guest, folder, { ...options, clients });
    if (made) await steadily(guest, options, (steady) => deleteOrphans(steady, made, options));
  } catch (error) {
    options.onWarning?.(`not everything was cleared away, the next backup will do it: ${messageOf(error)}`);
  }
}

/**
 * After the commit: ends the job, and deletes the checkpoints that no increment starts from any longer.
 * @returns their names
 */
export async function endJob(
  guest: Guest,
  { folder, made, clients, isCleared }: Traces,
  options: ClearOptions,
): Promise<readonly string[]> {
  try {
    if (!isCleared) await clearFolder(guest, folder, { ...options, clients });
    const names = guest.domain.disks.map(({ target }) => target);
    const { record } = made;
    return await steadily(guest, options, (steady) =>
      retire(steady, { names: [], record }, options, (points) => neededCheckpoints(points, names)),
    );
  } catch (error) {
    options.onWarning?.(
      `the point was committed, but not everything was cleared away (the next backup will do it): ${messageOf(error)}`,
    );
    return [];
  }
}

/** Runs `work` with a guest whose repository can be read although the signal has fired, for a while. */
async function steadily<T>(
  guest: Guest,
  { signal }: ClearOptions,
  work: (steady: Guest) => Promise<T>,
): Promise<T> {
  using grace = new Grace(signal, GRACE_MS);
  return await work({ ...guest, repository: guest.repository.withSignal(grace.late) });
}

/** Deletes checkpoints without a point: those of this run (`made`), and those of runs that died. */
export async function deleteOrphans(guest: Guest, made: Made, options: WarningOptions): Promise<void> {
  const named = (points: readonly Manifest[]): Set<string> =>
    new Set(points.flatMap(({ checkpoint }) => (checkpoint ? [checkpoint.name] : [])));
  await retire(guest, made, options, named);
}

/**
 * Deletes checkpoints that are not needed. If a manifest can't be read, its checkpoint is unknown and may be
 * needed, so only those in `made` are deleted.
 */
async function retire(
  guest: Guest,
  { names: made, record }: Made,
  options: WarningOptions,
  neededBy: (points: readonly Manifest[]) => ReadonlySet<string>,
): Promise<readonly string[]> {
  let damaged = false;
  const { repository, domain } = guest;
  const home = await domainFolder(repository, domain);
  const onDamage = (): void => {
    damaged = true;
  };
  const points = await repository.points(home, onDamage);
  // A point that can't be read may be this domain's in another folder of its name, too.
  for (const folder of await foldersNamed(repository, domain.name)) {
    if (folder !== home) await repository.points(folder, onDamage);
  }
  const needed = neededBy(pointsOf(points, domain.uuid));
  const { retired, failed } = await retireCheckpoints(
    guest,
    record,
    (name) => !needed.has(name) && (!damaged || made.includes(name)),
  );
  for (const message of failed) options.onWarning?.(message);
  return retired;
}
