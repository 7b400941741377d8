import { anySignal } from "../../nbd/index.js";
import { explained, hasCode, PreconditionError } from "../base/errors.js";
import { HeldFolder } from "../host/held-folder.js";
import { removeCopied } from "../repository/copied-record.js";
import {
  type HeldLock,
  LAST_READERS_WAIT_MS,
  READERS_WAIT_MS,
  waitForReaders,
} from "../repository/domain-lock.js";
import { type OnStep, publishMerges } from "../repository/finish-prune.js";
import { removeJournal } from "../repository/leftovers.js";
import { isLive } from "../repository/live-note.js";
import { isPointId } from "../repository/manifest.js";
import { isPoint } from "../repository/pending-point.js";
import { domainsAmong, isOwner, ownersOf, whichOwner } from "../repository/point-owners.js";
import {
  hasJournal,
  JOURNAL_FOLDER,
  type PruneJournal,
  readJournal,
  writeJournal,
} from "../repository/prune-journal.js";
import type { Repository } from "../repository/repository.js";
import { notedPoint } from "../storage/point-note.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import type { StoreWriting } from "../storage/stored-writing.js";
import { removePoints } from "./prune-in-store.js";

interface ForgetOptions {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  /** Whose points go, where the folder has those of several domains, as for `prune`. */
  readonly uuid?: string | undefined;
  /** Only find out what would go. */
  readonly dryRun: boolean;
  /**
   * Called when nothing stands in the way any more, and before anything is removed. If it throws, every point
   * stays.
   */
  readonly before?: ((going: Going) => Promise<void>) | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onWarning?: ((message: string) => void) | undefined;
  /** @internal tests end the process at each step */
  readonly onStep?: OnStep | undefined;
}

/** The points that go. */
interface Going {
  /** Oldest first. */
  readonly points: readonly string[];
  /** Of their domains, as far as their manifests tell. */
  readonly uuids: readonly string[];
}

export interface Forgotten extends Going {
  readonly domain: string;
  /** What the points take on the file system or in the store; all that is in the folder, if all go. */
  readonly bytes: number;
  /** What they have stored, as their manifests say; nothing of those whose manifest can't be read. */
  readonly storedBytes: number;
  /** What else is in the folder, which nbdpull didn't make, so it stays. */
  readonly left: readonly string[];
}

/**
 * Removes all points of a domain, damaged ones too. From one moment on none of them is a point any more: what
 * a killed run leaves is hidden, and the next command that locks the domain removes it. It is a prune that
 * keeps nothing: the same journal, so that older programs finish it as well.
 *
 * From an object store one point goes after the other, the newest first: what a killed run leaves can be
 * restored, and the next run goes on.
 *
 * @throws {UsageError} `E_WHICH_DOMAIN`: the folder has points of several domains
 * @throws {PreconditionError} `E_LOCKED`; `E_READERS`; `E_LIVE`: a guest runs on a point, whose disks are not
 *   filled yet; `E_PRUNE_UNFINISHED`: a prune of other domains' points in the folder is unfinished
 * @throws {DamageError} `E_LINK`: a link is called like a point; `E_PRUNE_JOURNAL`
 */
export async function forgetDomain(options: ForgetOptions): Promise<Forgotten> {
  const { repository, domain, signal } = options;
  if (options.dryRun) {
    return await repository.reading(
      domain,
      async () => {
        await using folder = await repository.openDomain(domain);
        if (!folder) return { domain, points: [], uuids: [], bytes: 0, storedBytes: 0, left: [] };
        return (await decide(options, folder)).forgotten;
      },
      signal,
    );
  }
  if (repository.isInStore) {
    return await repository.writingInStore(domain, (writing) => forgetInStore(writing, options), signal);
  }
  return await repository.writing(domain, (held) => forget(options, held), signal);
}

async function forget(options: ForgetOptions, { folder, assertHeld, lost }: HeldLock): Promise<Forgotten> {
  const { domain, before, onStep = () => undefined } = options;
  const signal = anySignal(options.signal, lost);
  const { forgotten, unfinished, isWhole } = await decide(options, folder);
  if (forgotten.points.length === 0) return forgotten;
  await noReaders(folder, domain, READERS_WAIT_MS, signal);
  const journal: PruneJournal = {
    format: "nbdpull-prune",
    version: 1,
    phase: "publish",
    drop: [...forgotten.points],
    merges: [],
    sync: true,
  };
  if (!unfinished) await folder.makeFolder(JOURNAL_FOLDER);
  await writeJournal(folder, journal, assertHeld);
  onStep("journal");
  try {
    // Those who began before this journal may still read; later ones wait for the lock, and find nothing.
    await noReaders(folder, domain, LAST_READERS_WAIT_MS, signal);
    signal.throwIfAborted();
    await before?.(forgotten);
  } catch (error) {
    if (unfinished) await writeJournal(folder, unfinished, assertHeld);
    else await removeJournal(folder, assertHeld);
    throw error;
  }
  if (isWhole) await removeCopied(folder);
  await publishMerges(folder, journal, { guard: assertHeld, onStep });
  return forgotten;
}

async function forgetInStore(writing: StoreWriting, options: ForgetOptions): Promise<Forgotten> {
  const { repository, domain, before, signal } = options;
  await using folder = await repository.openDomain(domain);
  if (!folder) return { domain, points: [], uuids: [], bytes: 0, storedBytes: 0, left: [] };
  const { forgotten, isWhole } = await decide(options, folder);
  if (forgotten.points.length === 0) return forgotten;
  await before?.(forgotten);
  signal?.throwIfAborted();
  if (isWhole) await removeCopied(writing.records);
  await removePoints(writing, forgotten.points, options);
  return forgotten;
}

/**
 * Folders of domains without points, which a killed run has not cleared. In a store nobody can tell them from
 * those whose first point is being made.
 */
export async function halfForgotten(repository: Repository): Promise<string[]> {
  const found: string[] = [];
  for (const name of await repository.folders()) {
    if ((await repository.pointNames(name)).length > 0) continue;
    await using folder = await repository.openDomain(name);
    const isLeft =
      folder instanceof HeldFolder
        ? await hasJournal(folder)
        : ((await folder?.names()) ?? []).some((each) => isPointId(notedPoint(each) ?? ""));
    if (isLeft) found.push(name);
  }
  return found;
}

interface Decided {
  readonly forgotten: Forgotten;
  /** The journal of a prune that died. */
  readonly unfinished: PruneJournal | undefined;
  /** Whether all points of the folder go. */
  readonly isWhole: boolean;
}

/** Finds what goes, and refuses what may not. Only reads. */
async function decide({ repository, domain, uuid }: ForgetOptions, folder: StoredFolder): Promise<Decided> {
  const unfinished = await readJournal(folder);
  const all: string[] = [];
  for (const name of (await folder.names()).filter(isPointId).sort()) {
    // In a store another program may be copying one there.
    if (folder.foldersAppearWhole || (await isPoint(folder, name))) all.push(name);
  }
  const points = await repository.points(domain, () => undefined);
  const owners = ownersOf(points);
  const whose = domainsAmong(owners);
  if (whose.length > 1 && uuid === undefined) throw whichOwner(`several domains called ${domain}`, whose);
  const chosen = uuid === undefined ? whose : whose.filter((owner) => isOwner(owner, uuid));
  const isWhole = chosen.length === whose.length;
  // Of a damaged point nobody knows whose it is: it goes with the last domain of its folder.
  const going = isWhole
    ? all
    : points.map(({ id }) => id).filter((id) => chosen.includes(owners.get(id) ?? null));
  if (!isWhole && unfinished) {
    const message = `a prune of ${domain} is unfinished: finish it by nbdpull prune, then run this again. Nothing was removed`;
    throw new PreconditionError("E_PRUNE_UNFINISHED", message, { details: { domain } });
  }
  let bytes = isWhole ? await usedBytes(folder) : 0;
  for (const id of going) {
    await using point = await folder.folder(id);
    if (!point) continue;
    if (await isLive(point)) throw isInUse(domain, id);
    if (!isWhole) bytes += await usedBytes(point);
  }
  const left = (await folder.names()).filter((name) => !name.startsWith(".") && !all.includes(name));
  const uuids = chosen.filter((each) => each !== null);
  const stored = points.filter(({ id }) => going.includes(id)).flatMap(({ disks }) => disks);
  const storedBytes = stored.reduce((sum, disk) => sum + disk.storedBytes, 0);
  return { forgotten: { domain, points: going, uuids, bytes, storedBytes, left }, unfinished, isWhole };
}

/** The bytes of all files in a folder, and in its folders. */
async function usedBytes(folder: StoredFolder): Promise<number> {
  if (folder instanceof HeldFolder) return await folder.usedBytes();
  let bytes = 0;
  for (const entry of await folder.entries()) {
    if (!entry.isDirectory()) {
      bytes += (await folder.find(entry.name))?.size ?? 0;
      continue;
    }
    await using inside = await folder.folder(entry.name);
    if (inside) bytes += await usedBytes(inside);
  }
  return bytes;
}

function isInUse(domain: string, id: string): PreconditionError {
  const message = `a guest runs on point ${id} of ${domain}, and its disks are not filled yet: finish that by nbdpull restore --live --resume. Nothing was removed`;
  return new PreconditionError("E_LIVE", message, { details: { domain, point: id } });
}

async function noReaders(
  folder: HeldFolder,
  domain: string,
  waitMs: number,
  signal: AbortSignal,
): Promise<void> {
  try {
    await waitForReaders(folder, domain, { waitMs, signal });
  } catch (error) {
    if (!hasCode(error, "E_READERS")) throw error;
    const message = `points of ${domain} are still being read (restore, verify, serve, mount): end that, then run this again. Nothing was removed`;
    throw explained(error, message, {});
  }
}
