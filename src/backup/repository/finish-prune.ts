import { DamageError } from "../base/errors.js";
import type { HeldFolder } from "../host/held-folder.js";
import { type Guard, ImageFile } from "../image/image-file.js";
import { removeDead, removeJournal, setAside } from "./leftovers.js";
import { type PlannedMerge, plannedMerges } from "./planned-merges.js";
import { heldJournal, type PruneJournal, readJournal, stagedManifest } from "./prune-journal.js";
import { applyPatch } from "./raw-patch.js";
import { MANIFEST } from "./read-manifest.js";

/** Longer than any header, even with extensions and the longest backing name. */
const HEADER_ROOM = 4096;

/** Called after each step; tests end the process there. */
export type OnStep = (step: string) => void;

interface Publishing {
  readonly guard: Guard;
  readonly onStep: OnStep;
}

/**
 * Undoes or finishes a prune that died, unless that takes long. The caller holds the domain's lock.
 * @returns the journal of a prune that the next prune has to finish; no point is in danger until then
 * @throws {DamageError} `E_PRUNE_JOURNAL`: no prune has written this journal here; nothing was changed
 */
export async function finishJournal(domain: HeldFolder, guard: Guard): Promise<PruneJournal | undefined> {
  const journal = await readJournal(domain);
  if (journal?.phase === "overwrite") return journal;
  if (journal?.phase === "merge") await undoMerges(domain, journal, guard);
  if (journal?.phase === "publish") await publishMerges(domain, journal, { guard, onStep: () => undefined });
  return undefined;
}

/** Truncates the images to their lengths before the merge, which restores them, and removes the journal. */
export async function undoMerges(domain: HeldFolder, journal: PruneJournal, guard: Guard): Promise<void> {
  for (const { base } of await plannedMerges(domain, journal)) {
    if (!base) continue;
    await using point = await domain.folder(base.point);
    if (((await point?.find(base.file))?.size ?? 0) <= base.bytes || !point) continue;
    const file = await ImageFile.openForWriting(point.at(base.file), guard);
    try {
      await file.truncate(base.bytes);
      if (journal.sync) await file.sync();
    } finally {
      await file.close();
    }
  }
  await removeJournal(domain, guard);
}

/**
 * Moves the merged images to the kept points and removes the dropped points. Skips steps that are already
 * done.
 * @throws {DamageError} `E_PRUNE_JOURNAL`: the journal or a prepared file is not a prune's; nothing was
 *   changed
 */
export async function publishMerges(
  domain: HeldFolder,
  journal: PruneJournal,
  publishing: Publishing,
): Promise<void> {
  const { guard, onStep } = publishing;
  const merges = await plannedMerges(domain, { ...journal, phase: "publish" });
  await using staged = await heldJournal(domain);
  for (const merge of merges) await publishMerge({ domain, staged }, merge, journal.sync, publishing);
  for (const id of new Set(merges.map(({ child }) => child))) {
    await using child = await pointIn(domain, id);
    await moveIfThere(staged, stagedManifest(id), child, MANIFEST, guard);
    if (journal.sync) await child.sync();
    onStep(`manifest of ${id}`);
  }
  for (const { child: id, stale } of merges) {
    await using child = await pointIn(domain, id);
    for (const file of stale) {
      await guard();
      await child.unlink(file);
    }
  }
  for (const id of journal.drop) {
    await guard();
    if (await domain.find(id)) await setAside(domain, id);
    onStep(`drop ${id}`);
  }
  if (journal.sync) await domain.sync();
  await removeJournal(domain, guard);
  onStep("journal removed");
  await removeDead(domain);
}

interface Folders {
  readonly domain: HeldFolder;
  /** The journal's, with the prepared files. */
  readonly staged: HeldFolder;
}

async function publishMerge(
  { domain, staged }: Folders,
  merge: PlannedMerge,
  sync: boolean,
  { guard, onStep }: Publishing,
): Promise<void> {
  const names = merge.staged;
  await using child = await pointIn(domain, merge.child);
  if (merge.inPlace) {
    const [hasHeader, hasPatch] = [await staged.find(names.header), await staged.find(names.patch)];
    await using point = merge.base && (await domain.folder(merge.base.point));
    // The header and patch files are deleted last, so while one exists this step may be unfinished. If the
    // base is missing, it was already renamed.
    if ((hasHeader || hasPatch) && merge.base && point && (await point.find(merge.base.file))) {
      const base = point.at(merge.base.file);
      if (hasHeader) await writeHeader(base, await staged.read(names.header, HEADER_ROOM), sync, guard);
      else await applyPatch(staged.at(names.patch), base, merge.virtualSize, { sync, guard });
      onStep(`${hasHeader ? "header" : "patch"} of ${merge.disk}`);
      await guard();
      const isInPlace = merge.base.point === merge.child && merge.base.file === merge.image;
      if (!isInPlace) await point.rename(merge.base.file, merge.image, child);
      if (sync) await child.sync();
      onStep(`image of ${merge.disk}`);
    }
    await guard();
    await staged.unlink(names.header);
    await staged.unlink(names.patch);
  } else {
    await moveIfThere(staged, names.image, child, merge.image, guard);
    onStep(`new image of ${merge.disk}`);
  }
  if (merge.map !== null) await moveIfThere(staged, names.map, child, merge.map, guard);
  onStep(`map of ${merge.disk}`);
  if (merge.digests !== null) await moveIfThere(staged, names.digests, child, merge.digests, guard);
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

async function pointIn(domain: HeldFolder, id: string): Promise<HeldFolder> {
  const point = await domain.folder(id);
  if (point) return point;
  const message = `point ${id} was removed from ${domain.path} while a prune ran`;
  throw new DamageError("E_PRUNE_JOURNAL", message, { details: { path: domain.path, point: id } });
}

async function moveIfThere(
  from: HeldFolder,
  name: string,
  to: HeldFolder,
  final: string,
  guard: Guard,
): Promise<void> {
  await guard();
  if (await from.find(name)) await from.rename(name, final, to);
}
