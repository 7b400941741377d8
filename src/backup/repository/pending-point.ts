import { join } from "node:path";
import { DamageError, PreconditionError } from "../base/errors.js";
import type { HeldFolder } from "../host/held-folder.js";
import type { NewPlace } from "../image/new-file.js";
import type { StoredEntry, StoredFolder } from "../storage/stored-folder.js";
import type { HeldLock } from "./domain-lock.js";
import { PARTIAL, setAside } from "./leftovers.js";
import { formatManifest, isPointId, type Manifest, pointIdAt, timeOfPointId } from "./manifest.js";
import { aheadText, fixClockCommand, pointsAhead } from "./points-ahead.js";
import { hiddenPoints } from "./prune-journal.js";
import { MANIFEST } from "./read-manifest.js";

/** The manifest of a copy, as the original has it: also what this program knows nothing of. */
export interface ManifestText {
  readonly text: string;
}

/** A point that is still being made, in a folder that readers ignore. */
export interface PendingPoint {
  readonly id: string;
  /** What the clock says, even if the id is that of a later time. */
  readonly createdAt: Date;
  /**
   * The folder in which its files are created, open until the work ends; undefined: they go to an object
   * store.
   */
  readonly folder: HeldFolder | undefined;
  /** Where a file of it is created. */
  at(name: string): NewPlace;
  /**
   * Runs `make` with the path of a folder of this machine. The files that it creates there are the point's.
   */
  keep<T>(make: (folder: string) => Promise<T>): Promise<T>;
  /** Aborted when the domain's lock was lost; a commit then fails. */
  readonly signal: AbortSignal;
  /** Set if a point was made later than now, by its manifest: a clock was wrong, then or now. */
  readonly clockWarning: string | undefined;
  /**
   * Writes the manifest, flushes everything to stable storage and gives the folder its final name. From then
   * on the point exists.
   */
  commit(manifest: Manifest | ManifestText, options: { readonly sync: boolean }): Promise<void>;
}

/** A point that a run has begun which was killed. */
export interface BegunPoint {
  readonly id: string;
  readonly createdAt: Date;
}

/** The name of the folder in which a point is made. */
export function partialName(id: string): string {
  return `.${id}${PARTIAL}`;
}

/**
 * Runs `work` with a pending point. If `work` ends without a commit, nothing is left.
 * @param as.begun the point to go on with, whose folder is there; default: a new one
 * @param as.copyOf the id that a new point gets, which the domain must not have yet; default: by the clock.
 *   Files that a dead run has left of it are there
 * @throws {PreconditionError} `E_LEFT_POINT`: the point to go on with is gone, or no longer the newest
 */
export async function makePoint<T>(
  held: HeldLock,
  work: (point: PendingPoint) => Promise<T>,
  { begun, copyOf }: { readonly begun?: BegunPoint | undefined; readonly copyOf?: string } = {},
): Promise<T> {
  const { folder } = held;
  const createdAt = begun?.createdAt ?? new Date();
  const known = begun?.id ?? copyOf;
  const { id, clockWarning } =
    known === undefined ? await newId(folder, createdAt) : { id: known, clockWarning: undefined };
  const name = partialName(id);
  if (copyOf !== undefined && (await folder.find(name))) await remakeFolder(folder, name);
  else if (!begun) await folder.makeFolder(name);
  try {
    if (begun) await assertStillLeft(folder, begun);
    await using partial = await folder.folder(name);
    if (!partial) throw exchanged(folder, name);
    return await work({
      id,
      createdAt,
      folder: partial,
      at: (name) => partial.at(name),
      keep: (make) => make(partial.reach),
      signal: held.lost,
      clockWarning,
      commit: async (manifest, options) => {
        held.lost.throwIfAborted();
        await commit({ domain: folder, name, partial, id }, manifest, options);
      },
    });
  } finally {
    await folder.remove(name);
  }
}

/**
 * Makes the folder of a partial point anew, with the files that a dead run has left in it. A run that was
 * only suspended holds the old one, and can't commit it.
 */
async function remakeFolder(domain: HeldFolder, name: string): Promise<void> {
  const aside = await setAside(domain, name);
  await domain.makeFolder(name);
  {
    await using from = await domain.folder(aside);
    await using to = await domain.folder(name);
    for (const entry of (await from?.entries()) ?? []) {
      if (to && entry.isFile()) await from?.rename(entry.name, entry.name, to);
    }
  }
  await domain.remove(aside);
}

/** The domain's lock was not held since the point was judged, so another run may have written meanwhile. */
async function assertStillLeft(folder: HeldFolder, { id, createdAt }: BegunPoint): Promise<void> {
  const isThere = (await folder.find(partialName(id))) !== undefined;
  const newer = (await pointNamesIn(folder)).some((other) => other >= id);
  if (isThere && !newer) return;
  const why = isThere ? "has made a newer point" : "has cleared it away";
  const message = `what a killed backup has stored of ${createdAt.toISOString()} can't be gone on with: another run ${why} meanwhile`;
  throw new PreconditionError("E_LEFT_POINT", message, { details: { path: folder.path, point: id } });
}

/** The ids of the points in a domain's folder, oldest first. */
export async function pointIdsIn(folder: StoredFolder): Promise<string[]> {
  return await idsOf(folder, (entry) => entry.isDirectory());
}

/** Like `pointIdsIn`, with links that are called like points. */
export async function pointNamesIn(folder: StoredFolder): Promise<string[]> {
  return await idsOf(folder, (entry) => entry.isDirectory() || entry.isSymbolicLink());
}

async function idsOf(folder: StoredFolder, fits: (entry: StoredEntry) => boolean): Promise<string[]> {
  const names = (await folder.entries())
    .filter((entry) => fits(entry) && isPointId(entry.name))
    .map((entry) => entry.name)
    .sort();
  const ids = folder.foldersAppearWhole ? names : await thosePublished(folder, names);
  if (ids.length === 0) return ids;
  const hidden = await hiddenPoints(folder);
  return ids.filter((id) => !hidden.has(id));
}

/** In an object store, a point exists when its manifest does, which is written last. */
async function thosePublished(folder: StoredFolder, names: readonly string[]): Promise<string[]> {
  const published: string[] = [];
  for (const name of names) if (await isPoint(folder, name)) published.push(name);
  return published;
}

/**
 * Whether a domain's folder has that point. @throws {DamageError} `E_LINK`: it is a symbolic link, or no
 * folder
 */
export async function isPoint(folder: StoredFolder, id: string): Promise<boolean> {
  await using point = await folder.folder(id);
  if (!point || folder.foldersAppearWhole) return point !== undefined;
  return (await point.find(MANIFEST)) !== undefined;
}

interface NewId {
  readonly id: string;
  readonly clockWarning: string | undefined;
}

/** An id that sorts behind those of all points. It is the time, unless a point has a later one. */
export async function newId(domain: StoredFolder, now: Date): Promise<NewId> {
  const ids = await pointIdsIn(domain);
  const newest = ids.at(-1);
  const ofNow = pointIdAt(now);
  if (newest === undefined || ofNow > newest) return { id: ofNow, clockWarning: undefined };
  const id = pointIdAt(new Date(timeOfPointId(newest) + 1));
  const ahead = await pointsAhead(domain, ids, now);
  // The time of such a point may have been mended, which leaves its id as it is.
  if (ahead.length === 0) return { id, clockWarning: undefined };
  const clockWarning = `${aheadText(ahead, now)}. The new point is called ${id}, so as to come after it, and is dated by the clock. When the clock is right, "${fixClockCommand(domain)}" mends the times that are not`;
  return { id, clockWarning };
}

interface Pending {
  readonly domain: HeldFolder;
  /** Of the folder in which the point was made. */
  readonly name: string;
  readonly partial: HeldFolder;
  readonly id: string;
}

/**
 * With `sync`, flushes the folder's content before it gets its final name, and that name before this returns.
 * @throws {DamageError} `E_LINK`: somebody has put something else in the place of the folder
 */
async function commit(
  { domain, name, partial, id }: Pending,
  manifest: Manifest | ManifestText,
  { sync }: { readonly sync: boolean },
): Promise<void> {
  const text = "text" in manifest ? manifest.text : formatManifest(manifest);
  await partial.create(MANIFEST, text, { sync });
  await partial.shareFiles();
  if (sync) await partial.sync();
  if (!(await domain.leadsTo(name, partial))) throw exchanged(domain, name);
  await domain.rename(name, id);
  if (!(await domain.leadsTo(id, partial))) {
    await domain.remove(id);
    throw exchanged(domain, name);
  }
  if (sync) await domain.sync();
}

function exchanged(domain: HeldFolder, name: string): DamageError {
  const path = join(domain.path, name);
  const message = `${path} was exchanged or removed while the point was made in it, so there is no point: find out who writes to ${domain.path}, and try again`;
  return new DamageError("E_LINK", message, { details: { path } });
}
