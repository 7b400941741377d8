/**
 * The repair room mends damage of points, where what is right is known for certain: a digest in the point
 * says so, or, for refcounts, the image's own tables. Nothing is ever mended by a guess.
 *
 * Read this file first: it goes through the disks of points. `remake-digests.ts` makes lost digest files
 * again, `mend-clusters.ts` writes the right content over damaged clusters, and `cluster-sources.ts` is where
 * that comes from. This room only changes bytes that are wrong anyway, one place at a time: whenever it is
 * killed, nothing is lost, and the next repair goes on.
 */

import { isUnreadable } from "../base/damage.js";
import { DamageError, PreconditionError } from "../base/errors.js";
import { closeAll } from "../base/in-parallel.js";
import { shellWord } from "../base/shell-word.js";
import { Layer } from "../chain/layer.js";
import type { HeldFolder } from "../host/held-folder.js";
import { type Guard, ImageFile } from "../image/image-file.js";
import { findWrongRefcounts } from "../qcow2/check.js";
import { REFCOUNT_BYTES } from "../qcow2/format.js";
import type { HeldLock } from "../repository/domain-lock.js";
import type { DiskManifest, Manifest } from "../repository/manifest.js";
import { readJournal } from "../repository/prune-journal.js";
import type { Repository } from "../repository/repository.js";
import { type ClusterSource, SiblingPoint, ZERO_SOURCE } from "./cluster-sources.js";
import { mendClusters } from "./mend-clusters.js";
import { isDigestFileRight, remakeDigests } from "./remake-digests.js";

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
}

/**
 * Mends what can be mended in the given points of a domain. Verify them before, to know which are damaged,
 * and afterwards, to know what is left.
 *
 * @throws {PreconditionError} `E_LOCKED`: another process writes points of the domain; `E_PRUNE_UNFINISHED`:
 *   a prune died that only the next prune can finish
 * @throws the file system's error; the signal's reason
 */
export async function repairPoints(options: RepairOptions): Promise<Mend[]> {
  const { repository, domain, dryRun, signal } = options;
  if (dryRun) {
    const look = async (): Promise<Mend[]> => {
      await using folder = await repository.holdDomain(domain);
      return folder ? await mendPoints(folder, async () => undefined, options) : [];
    };
    return await repository.reading(domain, look, signal);
  }
  const work = async ({ folder, assertHeld, lost }: HeldLock): Promise<Mend[]> => {
    const both = AbortSignal.any(signal ? [signal, lost] : [lost]);
    return await mendPoints(folder, assertHeld, { ...options, signal: both });
  };
  return await repository.writing(domain, work, signal);
}

/** @param domainFolder the domain's, in which a journal is looked for */
async function mendPoints(domainFolder: HeldFolder, guard: Guard, options: RepairOptions): Promise<Mend[]> {
  const { repository, domain } = options;
  if (await readJournal(domainFolder)) {
    const command = `nbdpull prune ${shellWord(repository.path)} ${shellWord(domain)}`;
    const message = `a prune of ${domain} was interrupted, and has to be finished first: repeat it (${command} with the rules that you keep points by)`;
    throw new PreconditionError("E_PRUNE_UNFINISHED", message, { details: { domain } });
  }
  const mends: Mend[] = [];
  for (const id of options.ids) {
    const point = await repository.point(domain, id).catch((error: unknown) => {
      if (error instanceof DamageError) return undefined;
      throw error;
    });
    for (const disk of point?.disks ?? []) {
      if (point) mends.push(...(await mendDisk(point, disk, guard, options)));
    }
  }
  return mends;
}

async function mendDisk(
  point: Manifest,
  disk: DiskManifest,
  guard: Guard,
  options: RepairOptions,
): Promise<Mend[]> {
  const { repository, domain, dryRun, signal } = options;
  const about = { point: point.id, disk: disk.name };
  await using folder = await repository.holdPoint(domain, point.id);
  const mends: Mend[] = [];
  try {
    const isRight = await isDigestFileRight(folder, disk, signal);
    if (!isRight) {
      if (await remakeDigests(folder, disk, { dryRun, guard, signal })) {
        mends.push({ ...about, what: "digests", from: "the image" });
      }
      // Without its digests nobody can tell what a cluster has to be. With them, the image is whole.
      return mends;
    }
    const isPlain = (await folder.find(disk.file))?.isFile() ?? false;
    if (!isPlain) return mends;
    if (disk.format === "qcow2") {
      const { isDamaged, entries } = await findWrongRefcounts(folder.at(disk.file), signal ? { signal } : {});
      // Two clusters may claim the same place: what is written for one would destroy the other.
      if (isDamaged) return mends;
      if (entries.length > 0) {
        if (!dryRun) await writeRefcounts(folder, disk, entries, guard);
        mends.push({ ...about, what: "refcounts", from: "the image's tables" });
      }
    }
    mends.push(...(await mendData(folder, point, disk, guard, options)));
  } catch (error) {
    // What can't be mended, the verify afterwards tells.
    if (!(error instanceof DamageError) && !isUnreadable(error)) throw error;
  }
  return mends;
}

async function mendData(
  folder: HeldFolder,
  point: Manifest,
  disk: DiskManifest,
  guard: Guard,
  { repository, domain, dryRun, sourcesOf, signal }: RepairOptions,
): Promise<Mend[]> {
  const others = (await repository.pointIds(domain)).filter((id) => id !== point.id);
  // The nearest in time come first: they are most alike.
  const at = others.filter((id) => id < point.id).length;
  const near = others.toSorted((a, b) => Math.abs(others.indexOf(a) - at) - Math.abs(others.indexOf(b) - at));
  const siblings = near.map((id) => new SiblingPoint(repository, domain, id, disk.name));
  try {
    await using layer = await Layer.open(await repository.holdPoint(domain, point.id), point.id, disk, {
      signal,
    });
    const sources = [ZERO_SOURCE, ...(sourcesOf?.(disk.name) ?? []), ...siblings];
    const mended = await mendClusters(layer, {
      ...{ sources, path: folder.at(disk.file), dryRun, guard, signal },
    });
    return mended.map((cluster) => ({ point: point.id, disk: disk.name, what: "cluster", ...cluster }));
  } finally {
    await closeAll(...siblings.map((sibling) => ({ close: () => sibling[Symbol.asyncDispose]() })));
  }
}

/** Each refcount has two bytes in one sector, so it is written as a whole or not at all. */
async function writeRefcounts(
  folder: HeldFolder,
  disk: DiskManifest,
  entries: readonly { readonly position: number; readonly refcount: number }[],
  guard: Guard,
): Promise<void> {
  const file = await ImageFile.openForWriting(folder.at(disk.file), guard);
  try {
    for (const { position, refcount } of entries) {
      const bytes = Buffer.alloc(REFCOUNT_BYTES);
      bytes.writeUInt16BE(refcount);
      await file.write(bytes, position);
    }
    await file.sync();
  } finally {
    await file.close();
  }
}
