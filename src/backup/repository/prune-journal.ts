import { z } from "zod";
import { DamageError, hasCode } from "../base/errors.js";
import { faultsOf, parseJson } from "../base/json.js";
import { isMissing } from "../host/durable-files.js";
import type { HeldFolder } from "../host/held-folder.js";
import type { Guard } from "../image/image-file.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import { isDiskName, isPointId } from "./manifest.js";

/**
 * What a prune is about to do, in `DOMAIN/.prune/journal.json`, so that the next command can finish or undo
 * it:
 *
 *     merge      data goes into unused space of images, and tables behind their ends; truncating undoes it
 *     overwrite  clusters that only the dropped points show are overwritten, so the dropped points no longer
 *                count as points. All others can be restored at any moment. Repeating this phase finishes it
 *     publish    headers, names, digests and manifests change, which takes moments; then the dropped points
 *                are removed. Points must not be read meanwhile. Each step is repeated or found done
 *
 * Whoever may write to the repository can write a journal. So it only names points and disks;
 * `planned-merges.ts` looks in the manifests for the files that are meant.
 */
const PHASES = ["merge", "overwrite", "publish"] as const;

/** In the domain's folder: the journal, and the files that a prune prepares. */
export const JOURNAL_FOLDER = ".prune";
const JOURNAL = "journal.json";
/** Longer than any journal. */
const MOST_BYTES = 64 * 1024 * 1024;

const pointId = z.string().refine(isPointId, "is not the id of a point");
const bytes = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER);
/** For programs of version 0.1, which take names of files from the journal. This one does not read them. */
const fileName = z.string();

const mergeRecord = z.object({
  disk: z.string().refine(isDiskName, "is not the name of a disk"),
  child: pointId,
  /** Newest first. */
  dropped: z.array(pointId).min(1),
  /** The image that is changed, and its length before the prune; null: a new image is made. */
  base: z.object({ point: pointId, file: fileName, bytes }).nullable(),
  /** How many copies the list of copies has. Journals of version 0.1 lack it. */
  copies: bytes.optional(),
  file: fileName,
  digests: fileName.nullable(),
  map: fileName.nullable(),
  stale: z.array(fileName),
});
const journalSchema = z
  .object({
    format: z.literal("nbdpull-prune"),
    /** Version 2: a raw image is changed, which older programs don't know of. */
    version: z.literal([1, 2]),
    phase: z.enum(PHASES),
    drop: z.array(pointId).min(1),
    merges: z.array(mergeRecord),
    sync: z.boolean(),
  })
  .refine(({ drop }) => new Set(drop).size === drop.length, "a point is dropped twice")
  .refine(({ drop, merges }) => {
    // Sets here, because whoever has written the journal decides how long both are.
    const dropped = new Set(drop);
    return merges.every(({ child }) => !dropped.has(child));
  }, "a point that is dropped takes over data")
  .refine(({ drop, merges }) => {
    const all = new Set(drop);
    return merges.every(({ dropped }) => dropped.every((id) => all.has(id)));
  }, "a point that stays gives its data away")
  .refine(
    ({ merges }) =>
      merges.every(({ child, dropped }) => dropped.every((id, i) => id < (dropped[i - 1] ?? child))),
    "a chain is not in the order of time",
  )
  .refine(
    ({ merges }) =>
      merges.every(({ base, child, dropped }) => !base || [child, ...dropped].includes(base.point)),
    "an image would be changed that has no part in the merge",
  )
  .refine(
    ({ merges }) => new Set(merges.map(({ child, disk }) => `${child}/${disk}`)).size === merges.length,
    "a disk is merged twice",
  );

export type MergeRecord = z.infer<typeof mergeRecord>;
export type PruneJournal = z.infer<typeof journalSchema>;

/** The names of the files that a merge prepares in the journal's folder. */
export interface StagedNames {
  /** A new image. */
  readonly image: string;
  /** The map of a raw increment. */
  readonly map: string;
  /** The new header of a changed qcow2 image. */
  readonly header: string;
  /** The list of copies that overwrite parts of a changed image. */
  readonly overwrites: string;
  /** For a changed raw image, in place of a header. */
  readonly patch: string;
  readonly digests: string;
}

export function stagedNames({ child, disk }: Pick<MergeRecord, "child" | "disk">): StagedNames {
  const of = (what: string): string => `${child}.${disk}.${what}`;
  return {
    image: of("image"),
    map: of("map"),
    header: of("header"),
    overwrites: of("overwrites"),
    patch: of("patch"),
    digests: of("digests"),
  };
}

export function stagedManifest(child: string): string {
  return `${child}.point.json`;
}

/**
 * @param domain the domain's folder
 * @throws {DamageError} the journal exists, and is not what a prune writes
 */
export async function readJournal(domain: StoredFolder): Promise<PruneJournal | undefined> {
  await using folder = await domain.folder(JOURNAL_FOLDER);
  if (!folder) return undefined;
  let text: string;
  try {
    text = (await folder.read(JOURNAL, MOST_BYTES)).toString("utf8");
  } catch (error) {
    if (isMissing(error)) return undefined;
    if (hasCode(error, "E_LINK")) throw wrongJournal(domain, error.message, error);
    throw error;
  }
  const parsed = journalSchema.safeParse(parseJson(text));
  if (parsed.success) return parsed.data;
  throw wrongJournal(domain, faultsOf(parsed.error));
}

/** The error for a journal that no prune has written, or that does not fit the points. */
export function wrongJournal(domain: Pick<StoredFolder, "path">, what: string, cause?: unknown): DamageError {
  const path = `${domain.path}/${JOURNAL_FOLDER}/${JOURNAL}`;
  const message = `${path} is not the journal of a prune here (${what}): nothing was changed. Find out who has written it. If nobody can tell, move the folder ${JOURNAL_FOLDER} away, and see with "nbdpull verify" which points are sound`;
  return new DamageError("E_PRUNE_JOURNAL", message, { cause, details: { path } });
}

/** Writes or replaces the journal; it is on stable storage when this returns. */
export async function writeJournal(domain: HeldFolder, journal: PruneJournal, guard: Guard): Promise<void> {
  await using folder = await heldJournal(domain);
  await folder.replace(JOURNAL, `${JSON.stringify(journal, null, 2)}\n`, guard);
  await folder.sync();
  await domain.sync();
}

/** The folder of the journal. @throws {DamageError} it is missing, or a link */
export async function heldJournal(domain: HeldFolder): Promise<HeldFolder> {
  const folder = await domain.folder(JOURNAL_FOLDER);
  if (folder) return folder;
  const path = `${domain.path}/${JOURNAL_FOLDER}`;
  throw new DamageError("E_PRUNE_JOURNAL", `${path} was removed while a prune ran`, { details: { path } });
}

/** Whether a prune has written a journal, valid or not. */
export async function hasJournal(domain: HeldFolder): Promise<boolean> {
  await using folder = await domain.folder(JOURNAL_FOLDER);
  return (await folder?.find(JOURNAL)) !== undefined;
}

/** Points that a prune has given up, though their folders are still needed. */
export async function hiddenPoints(domain: StoredFolder): Promise<ReadonlySet<string>> {
  const journal = await readJournal(domain);
  return new Set(journal && journal.phase !== "merge" ? journal.drop : []);
}
