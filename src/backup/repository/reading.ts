import { BackupError, DamageError, hasCode } from "../base/errors.js";
import type { HeldFolder } from "../host/held-folder.js";
import { MOST_MANIFEST_BYTES, type StoredFolder, type StoreRoot } from "../storage/stored-folder.js";
import { markReader, type ReaderMark } from "./domain-lock.js";
import { pointIdsIn } from "./pending-point.js";
import { type PruneJournal, readJournal } from "./prune-journal.js";
import { MANIFEST } from "./read-manifest.js";
import { etagsBefore } from "./redated-in-store.js";

/** A reader of a domain's points, from `beginReading` to `release`. */
export interface Reading {
  /** @throws {BackupError} a prune did not see this reader's mark, and has changed points meanwhile */
  assertUnpruned(): Promise<void>;
  release(): Promise<void>;
}

/** Opens the domain's folder as it is now; undefined: it is gone. */
export type OpenDomain = () => Promise<StoredFolder | undefined>;

/** What a reader needs of a domain in a folder of this machine. */
interface ReadFolder {
  /** Opens the domain's folder for the reader's mark, for which a prune waits; undefined: there is none. */
  readonly hold: () => Promise<HeldFolder | undefined>;
  readonly open: OpenDomain;
  /** Finishes what a prune has left that died while it published. */
  readonly finishPrune: () => Promise<void>;
}

/** A reader of a domain in a folder of this machine. Finishes first a prune that died while it published. */
export async function readingInFolder(
  domain: string,
  { hold, open, finishPrune }: ReadFolder,
): Promise<Reading> {
  for (;;) {
    const folder = await hold();
    // Nothing can be read there, and nothing pruned.
    if (!folder) return { assertUnpruned: async () => undefined, release: async () => undefined };
    const reading = await readingUnlessPublishing(domain, folder, open);
    if (reading) return reading;
    await finishPrune();
  }
}

/**
 * A reader who has a mark, for which a prune waits.
 * @param folder of the domain; closed with the reading, or if there is none
 * @returns undefined if a prune died while it published: it has to be finished first
 */
async function readingUnlessPublishing(
  domain: string,
  folder: HeldFolder,
  open: OpenDomain,
): Promise<Reading | undefined> {
  let mark: ReaderMark | undefined;
  let reading: Reading | undefined;
  try {
    mark = await markReader(folder);
    // Read after the mark was made, since a prune looks for marks after it has written the journal.
    const journal = await readJournal(folder);
    if (journal?.phase !== "publish") reading = await markedReading(domain, folder, mark, journal, open);
    return reading;
  } finally {
    if (!reading) {
      await mark?.release();
      await folder.close();
    }
  }
}

/** @param journal as it was when the mark had been made */
async function markedReading(
  domain: string,
  folder: HeldFolder,
  mark: ReaderMark,
  journal: PruneJournal | undefined,
  open: OpenDomain,
): Promise<Reading> {
  const ids = await pointIdsIn(folder);
  return {
    assertUnpruned: async () => {
      if (!(await mark.isThere())) await assertUnpruned(domain, ids, journal, open);
    },
    release: async () => {
      await mark.release();
      await folder.close();
    },
  };
}

/**
 * A reader in an object store, where nobody makes marks: what is read is held to what was listed, by its
 * ETag.
 */
export async function readingInStore(store: StoreRoot, domain: string, open: OpenDomain): Promise<Reading> {
  store.refresh(domain);
  const before = await manifestsIn(await open());
  return {
    assertUnpruned: async () => {
      store.refresh(domain);
      const folder = await open();
      const now = await manifestsIn(folder);
      // Whatever changes a point there replaces its manifest.
      for (const [id, etag] of before) {
        if (now.get(id) === etag || (await isOnlyRedated(folder, id, etag))) continue;
        throw prunedMeanwhile(domain);
      }
    },
    release: async () => undefined,
  };
}

/**
 * Runs `work`, which reads points, and releases the reading then.
 * @throws {BackupError} points were changed meanwhile, whether `work` has failed of it or not
 */
export async function whileReading<T>(
  begun: Reading,
  isInStore: boolean,
  work: () => Promise<T>,
): Promise<T> {
  try {
    const result = await work().catch(async (error: unknown) => {
      // What a prune has replaced or removed looks like damage there.
      if (isInStore && error instanceof DamageError) await begun.assertUnpruned();
      throw error;
    });
    await begun.assertUnpruned();
    return result;
  } finally {
    await begun.release();
  }
}

/** The ETags of the manifests, by the ids of the points. */
async function manifestsIn(folder: StoredFolder | undefined): Promise<Map<string, string | undefined>> {
  const etags = new Map<string, string | undefined>();
  for (const id of folder ? await pointIdsIn(folder) : []) {
    await using point = await folder?.folder(id);
    etags.set(id, (await point?.find(MANIFEST))?.etag);
  }
  return etags;
}

/** Whether nothing but its time was changed in the manifest of a point that had this ETag. */
async function isOnlyRedated(
  folder: StoredFolder | undefined,
  id: string,
  etag: string | undefined,
): Promise<boolean> {
  await using point = await folder?.folder(id);
  if (!point || etag === undefined) return false;
  try {
    const text = (await point.read(MANIFEST, MOST_MANIFEST_BYTES)).toString("utf8");
    return etagsBefore(text).includes(etag);
  } catch (error) {
    // It is gone, or changes again.
    if (hasCode(error, "ENOENT") || error instanceof DamageError) return false;
    throw error;
  }
}

/** @throws {BackupError} points are gone, or a prune that was running has ended */
async function assertUnpruned(
  domain: string,
  ids: readonly string[],
  journal: PruneJournal | undefined,
  open: OpenDomain,
): Promise<void> {
  await using folder = await open();
  const now = folder ? await pointIdsIn(folder) : [];
  const phase = folder && (await readJournal(folder))?.phase;
  const ended = journal?.phase === "overwrite" && phase !== "overwrite";
  if (ended || !ids.every((id) => now.includes(id))) throw prunedMeanwhile(domain);
}

function prunedMeanwhile(domain: string): BackupError {
  const message = `points of ${domain} were pruned while they were read, and the prune could not know of it (was this process suspended, or the repository not writable?): what was read may be wrong, read it again`;
  return new BackupError("E_PRUNED_MEANWHILE", message, { details: { domain } });
}
