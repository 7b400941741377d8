import { readdir, readFile, rename, rm, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { DamageError } from "../base/errors.js";
import { faultsOf, parseJson } from "../base/json.js";
import { exists, isMissing, syncFolder } from "../host/durable-files.js";
import { type Guard, ImageFile } from "../image/image-file.js";
import { applyPatch } from "./raw-patch.js";

/**
 * What a prune is about to do, in `DOMAIN/.prune/journal.json`, so that the next command can finish or undo
 * it:
 *
 *     merge      data goes into unused space of images, and tables behind their ends; truncating undoes it
 *     overwrite  clusters that only the dropped points show are overwritten, so the dropped points no longer
 *                count as points. All others can be restored at any moment. Repeating this phase finishes it
 *     publish    headers, names, digests and manifests change, which takes moments; then the dropped points
 *                are removed. Points must not be read meanwhile. Each step is repeated or found done
 */
const PHASES = ["merge", "overwrite", "publish"] as const;

const FOLDER = ".prune";
const JOURNAL = "journal.json";
const PARTIAL = ".partial";
const DEAD = ".dead-";

const name = z.string().regex(/^[^/\\\0.][^/\\\0]*$/);
const mergeRecord = z.object({
  disk: name,
  child: name,
  /** Newest first. */
  dropped: z.array(name),
  /** The image that is changed, and its length before the prune; null: a new image is made. */
  base: z.object({ point: name, file: name, bytes: z.number().int().nonnegative() }).nullable(),
  /** The names of the child's files, which stay the same; null: it has no such file after the prune. */
  file: name,
  digests: name.nullable(),
  map: name.nullable(),
  /** Files of the child that the prune removes. */
  stale: z.array(name),
});
const journalSchema = z.object({
  format: z.literal("nbdpull-prune"),
  /** Version 2: a raw image is changed, which older programs don't know of. */
  version: z.literal([1, 2]),
  phase: z.enum(PHASES),
  drop: z.array(name),
  merges: z.array(mergeRecord),
  sync: z.boolean(),
});

export type MergeRecord = z.infer<typeof mergeRecord>;
export type PruneJournal = z.infer<typeof journalSchema>;

/** The names of the files that a merge prepares in the journal's folder. */
export function stagedNames({ child, disk }: Pick<MergeRecord, "child" | "disk">): {
  image: string;
  map: string;
  header: string;
  overwrites: string;
  patch: string;
  digests: string;
} {
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

/** The folder in which a prune of the domain keeps its journal and the files that it prepares. */
export function journalFolder(folder: string): string {
  return join(folder, FOLDER);
}

/** @throws {DamageError} the journal exists and can't be parsed */
export async function readJournal(folder: string): Promise<PruneJournal | undefined> {
  const path = join(folder, FOLDER, JOURNAL);
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
  const parsed = journalSchema.safeParse(parseJson(text));
  if (parsed.success) return parsed.data;
  throw new DamageError("E_PRUNE_JOURNAL", `the journal ${path} can't be read: ${faultsOf(parsed.error)}`, {
    details: { path },
  });
}

/** Writes or replaces the journal; it is on stable storage when this returns. */
export async function writeJournal(folder: string, journal: PruneJournal, guard: Guard): Promise<void> {
  const path = join(folder, FOLDER, JOURNAL);
  const temporary = `${path}.new`;
  await writeFile(temporary, `${JSON.stringify(journal, null, 2)}\n`, { flush: true });
  await guard();
  await rename(temporary, path);
  await syncFolder(join(folder, FOLDER));
  await syncFolder(folder);
}

/** Points that a prune has given up, though their folders are still needed. */
export async function hiddenPoints(folder: string): Promise<readonly string[]> {
  const journal = await readJournal(folder);
  return journal && journal.phase !== "merge" ? journal.drop : [];
}

/** Truncates the images to their lengths before the merge, which restores them, and removes the journal. */
export async function undoMerges(folder: string, journal: PruneJournal, guard: Guard): Promise<void> {
  for (const { base } of journal.merges) {
    if (!base) continue;
    const path = join(folder, base.point, base.file);
    const file = await ImageFile.openForWriting(path, guard);
    try {
      if ((await file.size()) > base.bytes) await file.truncate(base.bytes);
      if (journal.sync) await file.sync();
    } finally {
      await file.close();
    }
  }
  await removeJournal(folder, guard);
}

/** Called after each step; tests end the process there. */
export type OnStep = (step: string) => void;

interface Publishing {
  readonly guard: Guard;
  readonly onStep: OnStep;
}

/**
 * Moves the merged images to the kept points and removes the dropped points. Skips steps that are already
 * done.
 */
export async function publishMerges(
  folder: string,
  journal: PruneJournal,
  { guard, onStep }: Publishing,
): Promise<void> {
  const staged = join(folder, FOLDER);
  const children = new Set(journal.merges.map(({ child }) => child));
  for (const merge of journal.merges) await publishMerge(folder, merge, journal.sync, { guard, onStep });
  for (const child of children) {
    await moveIfThere(join(staged, stagedManifest(child)), join(folder, child, "point.json"), guard);
    if (journal.sync) await syncFolder(join(folder, child));
    onStep(`manifest of ${child}`);
  }
  for (const { child, stale } of journal.merges) {
    for (const file of stale) {
      await guard();
      await unlink(join(folder, child, file)).catch(ignoreMissing);
    }
  }
  for (const id of journal.drop) {
    await moveIfThere(join(folder, id), join(folder, `${DEAD}${id}`), guard);
    onStep(`drop ${id}`);
  }
  if (journal.sync) await syncFolder(folder);
  await removeJournal(folder, guard);
  onStep("journal removed");
  await removeDead(folder);
}

async function publishMerge(
  folder: string,
  merge: MergeRecord,
  sync: boolean,
  { guard, onStep }: Publishing,
): Promise<void> {
  const staged = join(folder, FOLDER);
  const names = stagedNames(merge);
  const child = join(folder, merge.child);
  const final = join(child, merge.file);
  if (merge.base) {
    const base = join(folder, merge.base.point, merge.base.file);
    const header = join(staged, names.header);
    const patch = join(staged, names.patch);
    // The header and patch files are deleted last, so while one exists this step may be unfinished. If the
    // base is missing, it was already renamed.
    const [hasHeader, hasPatch] = [await exists(header), await exists(patch)];
    if ((hasHeader || hasPatch) && (await exists(base))) {
      if (hasHeader) await writeHeader(base, await readFile(header), sync, guard);
      else await applyPatch(patch, base, { sync, guard });
      onStep(`${hasHeader ? "header" : "patch"} of ${merge.disk}`);
      await guard();
      if (base !== final) await rename(base, final);
      if (sync) await syncFolder(child);
      onStep(`image of ${merge.disk}`);
    }
    await guard();
    await unlink(header).catch(ignoreMissing);
    await unlink(patch).catch(ignoreMissing);
  } else {
    await moveIfThere(join(staged, names.image), final, guard);
    onStep(`new image of ${merge.disk}`);
  }
  await replace(join(staged, names.map), child, merge.map, guard);
  onStep(`map of ${merge.disk}`);
  await replace(join(staged, names.digests), child, merge.digests, guard);
  onStep(`digests of ${merge.disk}`);
}

async function writeHeader(path: string, header: Buffer, sync: boolean, guard: Guard): Promise<void> {
  const file = await ImageFile.openForWriting(path, guard);
  try {
    // Zeroes overwrite the rest of an older, longer header.
    const rest = Buffer.alloc(HEADER_ROOM);
    header.copy(rest);
    await file.write(rest, 0);
    if (sync) await file.sync();
  } finally {
    await file.close();
  }
}

/** Longer than any header, even with extensions and the longest backing name. */
const HEADER_ROOM = 4096;

async function replace(staged: string, child: string, file: string | null, guard: Guard): Promise<void> {
  if (file !== null) await moveIfThere(staged, join(child, file), guard);
}

async function moveIfThere(from: string, to: string, guard: Guard): Promise<void> {
  await guard();
  await rename(from, to).catch(ignoreMissing);
}

function ignoreMissing(error: unknown): void {
  if (!isMissing(error)) throw error;
}

async function removeJournal(folder: string, guard: Guard): Promise<void> {
  await guard();
  await rename(join(folder, FOLDER), join(folder, `${DEAD}prune-${process.pid}-${Date.now()}`));
  await syncFolder(folder);
  await removeDead(folder);
}

/**
 * Removes partial points and aborted prunes. The caller holds the domain's lock, so a partial point belongs
 * to a run that died, or that lost its lock while it was suspended. It is renamed first, so that such a run
 * can't commit it later. A prune without a journal has changed nothing.
 */
export async function removeLeftovers(folder: string): Promise<void> {
  for (const name of await readdir(folder)) {
    const isPartial = name.startsWith(".") && name.endsWith(PARTIAL);
    const isAborted = name === FOLDER && !(await exists(join(folder, FOLDER, JOURNAL)));
    if (isPartial || isAborted) await rename(join(folder, name), join(folder, `${DEAD}${name.slice(1)}`));
  }
  await removeDead(folder);
}

async function removeDead(folder: string): Promise<void> {
  for (const name of await readdir(folder)) {
    if (name.startsWith(DEAD)) await rm(join(folder, name), { recursive: true, force: true });
  }
}

/**
 * Undoes or finishes a prune that died, unless that takes long. The caller holds the domain's lock.
 * @returns the journal of a prune that the next prune has to finish; no point is in danger until then
 */
export async function finishJournal(folder: string, guard: Guard): Promise<PruneJournal | undefined> {
  const journal = await readJournal(folder);
  if (journal?.phase === "overwrite") return journal;
  if (journal?.phase === "merge") await undoMerges(folder, journal, guard);
  if (journal?.phase === "publish") await publishMerges(folder, journal, { guard, onStep: () => undefined });
  return undefined;
}
