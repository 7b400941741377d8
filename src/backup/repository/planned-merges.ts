import { DamageError, hasCode } from "../base/errors.js";
import { isMissing } from "../host/durable-files.js";
import type { HeldFolder } from "../host/held-folder.js";
import { type DiskManifest, diskOf, type Manifest } from "./manifest.js";
import {
  heldJournal,
  type MergeRecord,
  type PruneJournal,
  type StagedNames,
  stagedManifest,
  stagedNames,
  wrongJournal,
} from "./prune-journal.js";
import { readManifest } from "./read-manifest.js";

/**
 * A merge of a journal, with the files that the manifests name for it. Nothing here comes from the journal
 * but points, disks and one length.
 */
export interface PlannedMerge {
  readonly disk: string;
  readonly child: string;
  readonly staged: StagedNames;
  /**
   * The image that is changed, and its length before the prune. Undefined if a new image is made, or if the
   * image already has its final name.
   */
  readonly base: { readonly point: string; readonly file: string; readonly bytes: number } | undefined;
  /** Whether an image is changed at all. */
  readonly inPlace: boolean;
  /** The child's image. */
  readonly image: string;
  /** The child's other files after the prune; null: it has no such file. */
  readonly digests: string | null;
  readonly map: string | null;
  /** Files of the child that the prune removes. */
  readonly stale: readonly string[];
  /** Of the disk after the prune, in bytes. */
  readonly virtualSize: number;
}

/**
 * Holds the journal against the repository. Changes nothing.
 *
 * @throws {DamageError} `E_PRUNE_JOURNAL`: it names points or disks that don't exist, or a prepared file is
 *   not a regular file; `E_MANIFEST`; `E_LINK`: a point's folder is a link
 */
export async function plannedMerges(domain: HeldFolder, journal: PruneJournal): Promise<PlannedMerge[]> {
  const there = new Set(await domain.names());
  for (const id of journal.drop) {
    await using point = there.has(id) ? await domain.folder(id) : undefined;
    // While it publishes, a prune removes the dropped points one after the other.
    if (!point && journal.phase !== "publish") throw wrongJournal(domain, `there is no point ${id}`);
  }
  await using folder = await heldJournal(domain);
  const place = { domain, folder, journal, manifests: new Map(), staged: new Map() };
  const planned: PlannedMerge[] = [];
  for (const record of journal.merges) planned.push(await plannedMerge(place, record));
  return planned;
}

interface Place {
  readonly domain: HeldFolder;
  /** The journal's. */
  readonly folder: HeldFolder;
  readonly journal: PruneJournal;
  /** Those that were read already, by point: many merges may name the same one. */
  readonly manifests: Map<string, Manifest | undefined>;
  readonly staged: Map<string, Manifest | undefined>;
}

async function plannedMerge(place: Place, record: MergeRecord): Promise<PlannedMerge> {
  const { domain, folder, journal } = place;
  const { child, disk } = record;
  const now = await once(place.manifests, child, () => manifestOf(domain, child));
  if (!now) throw wrongJournal(domain, `there is no point ${child}`);
  const before = diskIn(domain, now, disk);
  const then =
    (journal.phase === "publish" &&
      (await once(place.staged, child, () => stagedManifestOf(place, child)))) ||
    now;
  const after = diskIn(domain, then, disk);
  if (after.file !== before.file)
    throw wrongJournal(domain, `the image of ${disk} of ${child} has two names`);
  const staged = stagedNames(record);
  for (const name of Object.values(staged)) {
    const found = await folder.find(name);
    if (found && !found.isFile()) throw wrongJournal(domain, `${folder.path}/${name} is not a regular file`);
  }
  return {
    disk,
    child,
    staged,
    base: await baseOf(place, record),
    inPlace: record.base !== null,
    image: after.file,
    digests: after.digests?.file ?? null,
    map: after.map?.file ?? null,
    stale: staleFiles(before, then),
    virtualSize: after.virtualSize,
  };
}

/** The files that the disk had, or that a prune before this one has left, and that it has no longer. */
function staleFiles(before: DiskManifest, then: Manifest): string[] {
  const used = new Set(then.files?.map(({ file }) => file));
  for (const { file, map, digests } of then.disks) {
    for (const name of [file, map?.file, digests?.file]) if (name !== undefined) used.add(name);
  }
  const names = [before.map?.file, before.digests?.file, `${before.name}.map`, `${before.name}.digests`];
  return [...new Set(names)].filter((name) => name !== undefined).filter((name) => !used.has(name));
}

async function baseOf(
  { domain, manifests }: Place,
  { disk, base }: MergeRecord,
): Promise<PlannedMerge["base"]> {
  if (!base) return undefined;
  const manifest = await once(manifests, base.point, () => manifestOf(domain, base.point));
  if (!manifest) return undefined;
  return { point: base.point, file: diskIn(domain, manifest, disk).file, bytes: base.bytes };
}

function diskIn(domain: HeldFolder, manifest: Manifest, disk: string): DiskManifest {
  const found = diskOf(manifest, disk);
  if (!found) throw wrongJournal(domain, `point ${manifest.id} has no disk ${disk}`);
  return found;
}

async function once(
  known: Map<string, Manifest | undefined>,
  id: string,
  read: () => Promise<Manifest | undefined>,
): Promise<Manifest | undefined> {
  if (!known.has(id)) known.set(id, await read());
  return known.get(id);
}

/** Undefined if the point is not there. */
async function manifestOf(domain: HeldFolder, id: string): Promise<Manifest | undefined> {
  await using point = await domain.folder(id);
  return point && (await readManifest(point, id));
}

/** The manifest that the prune has prepared; undefined if it is in its place already. */
async function stagedManifestOf({ domain, folder }: Place, child: string): Promise<Manifest | undefined> {
  const name = stagedManifest(child);
  try {
    return await readManifest(folder, child, name);
  } catch (error) {
    if (hasCode(error, "E_MANIFEST") && isMissing((error.cause as Error | undefined) ?? error))
      return undefined;
    if (error instanceof DamageError) throw wrongJournal(domain, error.message, error);
    throw error;
  }
}
