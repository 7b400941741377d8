/**
 * The repair room mends damage of points, where what is right is known for certain: a digest in the point
 * says so, or, for refcounts, the image's own tables. Nothing is ever mended by a guess.
 *
 * Read this file first: it goes through the disks of points. `remake-digests.ts` makes lost digest files
 * again, `mend-clusters.ts` finds damaged clusters and what is right for them, and `cluster-sources.ts` is
 * where that comes from. `folder-mender.ts` writes it into images in place, `store-mender.ts` has an object
 * store make new ones, and `spared-points.ts` tells which of them a guest reads, so that they stay. Whenever
 * this room is killed, nothing is lost, and the next repair goes on.
 */

import { anySignal } from "../../nbd/index.js";
import { isUnreadable } from "../base/damage.js";
import { DamageError, hasCode, PreconditionError } from "../base/errors.js";
import { closeAll } from "../base/in-parallel.js";
import { shellWord } from "../base/shell-word.js";
import { Layer } from "../chain/layer.js";
import { findWrongRefcounts } from "../qcow2/check.js";
import type { HeldLock } from "../repository/domain-lock.js";
import type { DiskManifest, Manifest } from "../repository/manifest.js";
import { readJournal } from "../repository/prune-journal.js";
import type { Repository } from "../repository/repository.js";
import { keptVersionsText } from "../storage/kept-versions-text.js";
import type { KeptVersion, StoreWriting } from "../storage/stored-writing.js";
import { type ClusterSource, SiblingPoint, ZERO_SOURCE } from "./cluster-sources.js";
import { FolderMender } from "./folder-mender.js";
import type { ImageMender } from "./image-mender.js";
import { damagedClusters } from "./mend-clusters.js";
import { isDigestFileRight, remakeDigests } from "./remake-digests.js";
import { sparedPoints, sparedText } from "./spared-points.js";
import { assertReplaceable, StoreMender } from "./store-mender.js";

/** Something that was mended, or would be in a dry run. */
export interface Mend {
  readonly point: string;
  readonly disk: string;
  readonly what: "digests" | "refcounts" | "cluster";
  /** Bytes of the disk; only of a cluster. */
  readonly guestOffset?: number | undefined;
  readonly length?: number | undefined;
  /** Where the right content came from. */
  readonly from: string;
}

interface RepairOptions {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  /** The points to be mended, by their ids. */
  readonly ids: readonly string[];
  /** Only find out what would be mended, as any reader of the points. */
  readonly dryRun: boolean;
  /** Other places that may have the content of a disk, which come first. */
  readonly sourcesOf?: ((disk: string) => readonly ClusterSource[]) | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onWarning?: ((message: string) => void) | undefined;
  /** Gets the ids of points that stay as they are now, whatever else would have what is right for them. */
  readonly onSpared?: ((id: string) => void) | undefined;
  /** @internal tests end the process at each step */
  readonly onStep?: ((step: string) => void) | undefined;
}

/** Makes what mends the image of a disk; undefined: it is only found out what could be mended. */
type MenderOf = ((point: Manifest, disk: DiskManifest) => Promise<ImageMender>) | undefined;

/**
 * Mends what can be mended in the given points of a domain. Where a guest runs on one in an object store,
 * that one and those that it is based on stay as they are, with a warning; so does one whose manifest can't be
 * changed there. Verify them before, to know which are damaged, and afterwards, to know what is left.
 *
 * @throws {PreconditionError} `E_LOCKED`: another process writes points of the domain; `E_PRUNE_UNFINISHED`:
 *   a prune died that only the next prune can finish; in an object store `E_S3_LACKS`: it can't replace a
 *   manifest safely
 * @throws {BackupError} in an object store `E_LEASE_LOST`, or `E_S3_FAILED`: it has made something else of a
 *   mended image, and the point is as before
 * @throws the file system's error; the signal's reason
 */
export async function repairPoints(options: RepairOptions): Promise<Mend[]> {
  const { repository, domain, dryRun, signal } = options;
  if (dryRun) return await repository.reading(domain, () => mendPoints(undefined, options), signal);
  if (repository.isInStore) {
    return await repository.writingInStore(domain, (writing) => mendInStore(writing, options), signal);
  }
  const work = async ({ assertHeld, lost }: HeldLock): Promise<Mend[]> => {
    const both = anySignal(signal, lost);
    const menderOf = async ({ id }: Manifest, disk: DiskManifest): Promise<ImageMender> =>
      new FolderMender(await repository.holdPoint(domain, id), disk, assertHeld);
    return await mendPoints(menderOf, { ...options, signal: both });
  };
  return await repository.writing(domain, work, signal);
}

async function mendInStore(writing: StoreWriting, options: RepairOptions): Promise<Mend[]> {
  const { repository, domain, signal, onStep, onWarning } = options;
  const versions: KeptVersion[] = [];
  const common = { repository, domain, signal, onStep };
  const onVersions = (more: readonly KeptVersion[]): void => void versions.push(...more);
  const menderOf = async (point: Manifest, disk: DiskManifest): Promise<ImageMender> =>
    new StoreMender(writing, { ...common, point, disk, onVersions });
  try {
    return await mendPoints(menderOf, options);
  } finally {
    if (versions.length > 0) onWarning?.(keptVersionsText(domain, "files that were replaced", versions));
  }
}

async function mendPoints(menderOf: MenderOf, options: RepairOptions): Promise<Mend[]> {
  const { repository, domain } = options;
  await assertNoPrune(options);
  const spared = await sparedPoints(repository, domain);
  const spare = (id: string, why: string): void => {
    options.onWarning?.(why);
    options.onSpared?.(id);
  };
  const mends: Mend[] = [];
  for (const id of options.ids) {
    const live = spared.get(id);
    if (live !== undefined) {
      spare(id, sparedText(domain, id, live));
      continue;
    }
    // Of several disks, the one before may have changed it.
    const pointNow = (): Promise<Manifest | undefined> =>
      repository.point(domain, id).catch((error: unknown) => {
        if (error instanceof DamageError) return undefined;
        throw error;
      });
    for (const { name } of (await pointNow())?.disks ?? []) {
      const point = await pointNow();
      const disk = point?.disks.find((each) => each.name === name);
      if (!point || !disk) continue;
      try {
        mends.push(...(await mendDisk(point, disk, menderOf, options)));
      } catch (error) {
        // A guest has begun to run on it meanwhile. The other points can be mended all the same.
        if (!hasCode(error, "E_LIVE") && !hasCode(error, "E_MANIFEST")) throw error;
        spare(id, error.message);
        break;
      }
    }
  }
  return mends;
}

/** @throws {PreconditionError} `E_PRUNE_UNFINISHED` */
async function assertNoPrune({ repository, domain }: RepairOptions): Promise<void> {
  await using folder = await repository.openDomain(domain);
  if (!folder || !(await readJournal(folder))) return;
  const command = `nbdpull prune ${shellWord(repository.path)} ${shellWord(domain)}`;
  const message = `a prune of ${domain} was interrupted, and has to be finished first: repeat it (${command} with the rules that you keep points by)`;
  throw new PreconditionError("E_PRUNE_UNFINISHED", message, { details: { domain } });
}

async function mendDisk(
  point: Manifest,
  disk: DiskManifest,
  menderOf: MenderOf,
  options: RepairOptions,
): Promise<Mend[]> {
  const siblings = await siblingsOf(point, disk, options);
  await using mender = await menderOf?.(point, disk);
  try {
    const sources = [ZERO_SOURCE, ...(options.sourcesOf?.(disk.name) ?? []), ...siblings];
    const mends: Mend[] = [];
    try {
      for await (const mend of mendsOf(point, disk, { ...options, sources, mender })) mends.push(mend);
    } catch (error) {
      // What can't be mended, the verify afterwards tells.
      if (!(error instanceof DamageError) && !isUnreadable(error)) throw error;
      if (hasCode(error, "E_MANIFEST")) throw error;
      // A new image would have this damage too, and could not be proven.
      if (mender?.isDeferred) return mends.filter(({ what }) => what === "digests");
    }
    if (!mender && options.repository.isInStore && mends.length > 0) {
      await assertReplaceable(options, point, disk);
    }
    const gone = await mender?.finish();
    return mends.filter(({ guestOffset = -1 }) => !gone?.has(guestOffset));
  } finally {
    await closeAll(...siblings.map((sibling) => ({ close: () => sibling[Symbol.asyncDispose]() })));
  }
}

/** The other points of the domain. The nearest in time come first: they are most alike. */
async function siblingsOf(
  { id: own }: Manifest,
  disk: DiskManifest,
  { repository, domain }: RepairOptions,
): Promise<SiblingPoint[]> {
  const others = (await repository.pointIds(domain)).filter((id) => id !== own);
  const at = others.filter((id) => id < own).length;
  const near = others.toSorted((a, b) => Math.abs(others.indexOf(a) - at) - Math.abs(others.indexOf(b) - at));
  return near.map((id) => new SiblingPoint(repository, domain, id, disk.name));
}

interface MendDiskOptions extends RepairOptions {
  readonly sources: readonly ClusterSource[];
  readonly mender: ImageMender | undefined;
}

/** Goes through a disk, and gives the mender what is right for what is damaged. */
async function* mendsOf(
  point: Manifest,
  disk: DiskManifest,
  { repository, domain, signal, sources, mender }: MendDiskOptions,
): AsyncGenerator<Mend> {
  const about = { point: point.id, disk: disk.name };
  await using folder = await repository.openPoint(domain, point.id);
  if (!(await isDigestFileRight(folder, disk, signal))) {
    if (await remakeDigests(folder, disk, { place: mender?.digests, signal })) {
      yield { ...about, what: "digests", from: "the image" };
    }
    // Without its digests nobody can tell what a cluster has to be. With them, the image is whole.
    return;
  }
  if (!(await folder.find(disk.file))?.isFile()) return;
  if (disk.format === "qcow2") {
    const { isDamaged, entries } = await findWrongRefcounts(folder.at(disk.file), { signal });
    // Two clusters may claim the same place: what is written for one would destroy the other.
    if (isDamaged) return;
    if (entries.length > 0) {
      await mender?.refcounts(entries);
      yield { ...about, what: "refcounts", from: "the image's tables" };
    }
  }
  const opened = await repository.openPoint(domain, point.id);
  await using layer = await Layer.open(opened, point.id, disk, { signal });
  const look = { sources, compressed: repository.isInStore && mender !== undefined, signal };
  for await (const damaged of damagedClusters(layer, look)) {
    const { guestOffset, length, mend } = damaged;
    if (!mend) {
      mender?.leave(damaged);
      continue;
    }
    await mender?.cluster(damaged, mend);
    yield { ...about, what: "cluster", guestOffset, length, from: mend.from };
  }
}
