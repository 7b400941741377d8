/**
 * The prune room removes points that no retention rule keeps. Before that, it merges the clusters of removed
 * points that kept points still need: into the kept point's image, into the image of a removed point, which
 * then takes its place, or into a new image.
 *
 * Read this file first: it decides, checks, and goes through the phases that `repository/prune-journal.ts`
 * describes. Then read `prune-options.ts` (what is asked for and told), `prune-in-store.ts` (the same in an
 * object store), `decide.ts` (which points stay), `retention.ts` (which points the
 * rules keep) and `prune-plan.ts` (which points can go, and what has to be merged). `merge-disk.ts` merges
 * one disk: it walks over the layers with `merge-walk.ts` and gives every cluster to a `merge-target.ts`,
 * either `qcow2-merge-target.ts` or `raw-merge-target.ts`, and its digest to `merged-digests.ts`. Most of the
 * data goes through `taken-clusters.ts`, which has a thread (`merge-threads.ts`, `merge-service.ts`,
 * `merge-worker.ts`) and this one prove and copy it. `copy-list.ts` is the list of the copies that overwrite
 * an image in place.
 *
 * Nothing that a kept point shows is overwritten before its replacement is on disk and in the journal. This
 * room uses no NBD, knows nothing of libvirt and deletes no checkpoints.
 */

import { anySignal } from "../../nbd/index.js";
import { DamageError, hasCode, PreconditionError, UsageError } from "../base/errors.js";
import { closeAll } from "../base/in-parallel.js";
import { freeBytes } from "../host/free-bytes.js";
import type { HeldFolder } from "../host/held-folder.js";
import { ImageFile } from "../image/image-file.js";
import { checkQcow2 } from "../qcow2/check.js";
import {
  type HeldLock,
  type HolderMark,
  LAST_READERS_WAIT_MS,
  READERS_WAIT_MS,
  waitForReaders,
} from "../repository/domain-lock.js";
import { type OnStep, publishMerges, undoMerges } from "../repository/finish-prune.js";
import type { Manifest } from "../repository/manifest.js";
import { changedManifest } from "../repository/merged-manifest.js";
import { plannedMerges } from "../repository/planned-merges.js";
import {
  heldJournal,
  JOURNAL_FOLDER,
  type MergeRecord,
  type PruneJournal,
  readJournal,
  stagedManifest,
  stagedNames,
  writeJournal,
} from "../repository/prune-journal.js";
import { manifestText } from "../repository/read-manifest.js";
import { applyCopyList, type CopySource, copySourceOf } from "./copy-list.js";
import { decide, describe } from "./decide.js";
import type { DiskChain } from "./disk-chain.js";
import { chainOf } from "./disk-chain.js";
import { type MergedDisk, mergeDisk } from "./merge-disk.js";
import { planInStore } from "./merge-in-store.js";
import { chooseMergeMethod, type MergeMethod } from "./merge-method.js";
import { MergeThreads } from "./merge-threads.js";
import { pruneInStore } from "./prune-in-store.js";
import { bytesOf, type DoneMerge, type PruneOptions, type PruneResult } from "./prune-options.js";
import { type Merge, mostBytes, type PrunePlan } from "./prune-plan.js";

export type { DoneMerge, PruneOptions, PruneResult } from "./prune-options.js";

/**
 * Drops the points of a domain that no rule keeps. What kept points need of them is merged first, into the
 * image that needs the fewest new bytes.
 *
 * If the prune fails or dies, every kept point can still be restored. The next command that locks the domain
 * undoes the phase `merge` or finishes the phase `publish`. Only the next prune finishes the phase
 * `overwrite`.
 *
 * @throws {UsageError} `E_KEEP_NOTHING`: no rule keeps anything
 * @throws {DamageError} a manifest, or something that would be merged, is damaged; no kept point has changed
 * @throws {PreconditionError} `E_LOCKED`: another process writes points of the domain; `E_READERS`: points
 *   are still being read; `E_NO_ROOM`: the file system has too little space for the merges
 * @throws {BackupError} `E_LOCK_LOST`: another process may have taken the domain's lock
 * @throws the file system's error, with `code`; the signal's reason
 */
export async function prune(options: PruneOptions): Promise<PruneResult> {
  const { repository, domain, retention } = options;
  if (!Object.values(retention).some((count) => count > 0)) {
    const message =
      "this would keep nothing: give --keep-last, --keep-daily, --keep-weekly or --keep-monthly at least 1";
    throw new UsageError("E_KEEP_NOTHING", message);
  }
  if (options.dryRun) return await repository.reading(domain, () => dryRun(options), options.signal);
  if (repository.isInStore) {
    return await repository.writingInStore(
      domain,
      (writing) => pruneInStore(writing, options),
      options.signal,
    );
  }
  const work = async (held: HeldLock): Promise<PruneResult> => {
    const signal = anySignal(options.signal, held.lost);
    try {
      return await new Prune({ ...options, signal }, held).run();
    } catch (error) {
      // If the lock was lost, changes by its new holder look like damage.
      await held.assertHeld();
      throw error;
    }
  };
  return await repository.writing(domain, work, options.signal);
}

async function dryRun(options: PruneOptions): Promise<PruneResult> {
  const decision = await decide(options);
  const { plan } = decision;
  const merges: DoneMerge[] = [];
  for (const merge of plan.merges) {
    if (options.repository.isInStore) merges.push(await planInStore(options, merge));
    else {
      const { base, writeBytes } = await chooseMergeMethod(await chainOf(options, merge));
      merges.push({ ...merge, base, writtenBytes: writeBytes, copiedBytes: 0 });
    }
  }
  return {
    ...describe(options.domain, decision),
    ...{ merges, ...bytesOf(merges) },
    freedBytes: null,
  };
}

class Prune {
  readonly #options: PruneOptions;
  readonly #folder: HeldFolder;
  readonly #onStep: OnStep;
  readonly #guard: HeldLock["assertHeld"];
  readonly #mark: HolderMark;

  constructor(options: PruneOptions, held: HeldLock) {
    this.#guard = held.assertHeld;
    this.#mark = held.mark;
    this.#options = options;
    this.#folder = held.folder;
    this.#onStep = options.onStep ?? (() => undefined);
  }

  async run(): Promise<PruneResult> {
    const before = await this.#folder.usedBytes();
    const unfinished = await readJournal(this.#folder);
    if (unfinished) await this.#finish(unfinished);
    const decision = await decide(this.#options);
    const { points, plan } = decision;
    const merges = plan.drop.length === 0 ? [] : await this.#drop(points, plan);
    const freedBytes = before - (await this.#folder.usedBytes());
    const { domain } = this.#options;
    return { ...describe(domain, decision), merges, ...bytesOf(merges), freedBytes };
  }

  async #drop(points: readonly Manifest[], plan: PrunePlan): Promise<DoneMerge[]> {
    const { sync } = this.#options;
    await using threads = new MergeThreads(mostBytes(points, plan));
    threads.start();
    const prepared: Prepared[] = [];
    for (const merge of plan.merges) prepared.push(await this.#prepare(merge));
    await this.#assertSpace(prepared);
    const records = prepared.map(({ record }) => record);
    const drop = [...plan.drop];
    const journal: PruneJournal = {
      format: "nbdpull-prune",
      version: prepared.some(({ chain, method }) => isRawBase(chain, method)) ? 2 : 1,
      phase: "merge",
      drop,
      merges: records,
      sync,
    };
    await this.#folder.makeFolder(JOURNAL_FOLDER);
    await writeJournal(this.#folder, journal, this.#guard);
    this.#onStep("journal");
    let merged: Merged;
    try {
      merged = await this.#merge(points, prepared, threads);
      await writeJournal(
        this.#folder,
        { ...journal, merges: merged.records, phase: "overwrite" },
        this.#guard,
      );
    } catch (error) {
      // A thread may notice it first. Another holder undoes the merges, or has done so, and may be writing.
      if (hasCode(error, "E_LOCK_LOST")) throw error;
      // If the journal of the next phase has its name and only the flush failed, nothing must be undone.
      if ((await readJournal(this.#folder))?.phase === "merge") {
        await undoMerges(this.#folder, journal, this.#guard);
      }
      throw error;
    }
    this.#onStep("overwrite");
    await this.#finish({ ...journal, merges: merged.records, phase: "overwrite" });
    return merged.merges;
  }

  /**
   * Chooses the method of a merge. A qcow2 image that will be changed is checked first, because its refcounts
   * tell which clusters are free.
   * @throws {DamageError} a layer or the image that would be changed is damaged
   */
  async #prepare(merge: Merge): Promise<Prepared> {
    const chain = await chainOf(this.#options, merge);
    const method = await chooseMergeMethod(chain);
    const { disk } = chain.links[0];
    const isComplete = chain.links.at(-1)?.disk.mode === "full";
    const lacksDigests = chain.links.some((link) => link.disk.digests === null);
    const stale = [isComplete && disk.map?.file, lacksDigests && disk.digests?.file];
    const record: MergeRecord = {
      disk: merge.disk,
      child: merge.child,
      dropped: [...merge.dropped],
      base: null,
      file: disk.file,
      digests: lacksDigests ? null : (disk.digests?.file ?? null),
      map: isComplete ? null : (disk.map?.file ?? null),
      stale: stale.filter((file) => typeof file === "string"),
    };
    const index = chain.links.findIndex(({ point }) => point.id === method.base);
    const link = chain.links[index];
    if (!link) return { merge, chain, method, record };
    await using folder = await this.#options.repository.holdPoint(this.#options.domain, link.point.id);
    const path = folder.at(link.disk.file);
    const bytes = await changeableBytes(path);
    const base = { point: link.point.id, file: link.disk.file, bytes };
    if (isRawBase(chain, method)) return { merge, chain, method, record: { ...record, base } };
    const [damaged] = (await checkQcow2(path, this.#options)).filter(({ severity }) => severity === "damage");
    if (damaged) {
      const message = `disk ${merge.disk} of point ${link.point.id} is damaged, so nothing can be merged into its image: ${damaged.message}. Nothing was changed; "nbdpull verify" tells more`;
      throw new DamageError("E_DAMAGED", message, { details: { point: link.point.id, disk: merge.disk } });
    }
    return { merge, chain, method, record: { ...record, base } };
  }

  /** @throws {PreconditionError} `E_NO_ROOM`: the file system has too little space for the merges */
  async #assertSpace(prepared: readonly Prepared[]): Promise<void> {
    const needed = prepared.reduce((total, { method }) => total + method.writeBytes, 0);
    const available = await freeBytes(this.#folder.reach);
    if (needed <= available) return;
    const message = `merging writes up to ${needed} bytes, and ${this.#folder.path} has ${available} bytes left: free some space, or keep more points. Nothing was changed`;
    throw new PreconditionError("E_NO_ROOM", message, { details: { needed, available } });
  }

  async #merge(
    points: readonly Manifest[],
    prepared: readonly Prepared[],
    threads: MergeThreads,
  ): Promise<Merged> {
    const { repository, domain, sync, signal, onProgress } = this.#options;
    await using folder = await heldJournal(this.#folder);
    const merged = new Map<Merge, MergedDisk>();
    for (const { merge, chain, method, record } of prepared) {
      const onPosition = (position: number, size: number): void => onProgress?.(merge.disk, position, size);
      const held = { guard: this.#guard, mark: this.#mark };
      const options = { folder, names: stagedNames(record), sync, signal, threads, ...held, onPosition };
      merged.set(merge, await mergeDisk(chain, method, options));
      this.#onStep(`merged ${merge.disk}`);
    }
    for (const child of new Set(prepared.map(({ merge }) => merge.child))) {
      const old = points.find(({ id }) => id === child);
      if (!old) throw new RangeError(`there is no point ${child}`);
      const disks = old.disks.map((disk) => {
        const merge = prepared.find((p) => p.merge.child === child && p.merge.disk === disk.name)?.merge;
        return (merge && merged.get(merge)?.disk) ?? disk;
      });
      const level = disks.every(({ mode }) => mode === "full") ? "full" : "incremental";
      await using point = await repository.openPoint(domain, child);
      const text = changedManifest(await manifestText(point, old), { ...old, level, disks });
      await folder.create(stagedManifest(child), text, { sync });
    }
    await folder.shareFiles();
    if (sync) await folder.sync();
    this.#onStep("staged");
    return {
      merges: prepared.map(({ merge, method }) => ({
        ...merge,
        base: method.base,
        writtenBytes: merged.get(merge)?.writtenBytes ?? 0,
        copiedBytes: 0,
      })),
      records: prepared.map(({ merge, record }) => ({ ...record, copies: merged.get(merge)?.copies })),
    };
  }

  /**
   * Goes through the phases `overwrite` and `publish`. Each step can be repeated, by this prune or the next
   * one.
   */
  async #finish(journal: PruneJournal): Promise<void> {
    const { domain, signal, sync } = this.#options;
    await plannedMerges(this.#folder, journal);
    // A reader may still be restoring a dropped point.
    await waitForReaders(this.#folder, domain, { waitMs: READERS_WAIT_MS, signal });
    for (const record of journal.merges) await this.#overwrite(record, sync);
    this.#onStep("overwritten");
    const deadline = performance.now() + READERS_WAIT_MS;
    for (let alone = false; !alone; ) {
      await waitForReaders(this.#folder, domain, { waitMs: deadline - performance.now(), signal });
      await writeJournal(this.#folder, { ...journal, phase: "publish" }, this.#guard);
      // Readers that came before this journal may still read. Later ones wait until the prune is finished.
      alone = await waitForReaders(this.#folder, domain, { waitMs: LAST_READERS_WAIT_MS, signal }).then(
        () => true,
        () => false,
      );
      if (!alone) await writeJournal(this.#folder, { ...journal, phase: "overwrite" }, this.#guard);
    }
    this.#onStep("publish");
    await publishMerges(this.#folder, journal, { guard: this.#guard, onStep: this.#onStep });
  }

  async #overwrite(record: MergeRecord, sync: boolean): Promise<void> {
    if (!record.base) return;
    const chain = await chainOf(this.#options, record);
    const folders: HeldFolder[] = [];
    const sources: CopySource[] = [];
    let base: string | undefined;
    try {
      for (const { point, disk } of chain.links) {
        const folder = await this.#options.repository.holdPoint(this.#options.domain, point.id);
        folders.push(folder);
        const path = folder.at(disk.file);
        sources.push(await copySourceOf(path, disk));
        if (point.id === record.base.point) base = path;
      }
      if (base === undefined) throw new RangeError(`${record.base.point} has no part in the merge`);
      await using staged = await heldJournal(this.#folder);
      const { format, virtualSize } = chain.links[0].disk;
      await applyCopyList(staged.at(stagedNames(record).overwrites), base, sources, {
        copies: record.copies,
        imageBytes: format === "raw" ? virtualSize : undefined,
        sync,
        signal: this.#options.signal,
        guard: this.#guard,
      });
    } finally {
      await closeAll(...sources.map(({ reader }) => reader), ...folders);
    }
  }
}

/** What the merges have done, and their entries in the journal of the next phase. */
interface Merged {
  readonly merges: DoneMerge[];
  readonly records: MergeRecord[];
}

/** A merge before it begins, with its entry in the journal. */
interface Prepared {
  readonly merge: Merge;
  readonly chain: DiskChain;
  readonly method: MergeMethod;
  readonly record: MergeRecord;
}

function isRawBase({ links }: DiskChain, { base }: MergeMethod): boolean {
  return links.some(({ point, disk }) => point.id === base && disk.format === "raw");
}

/**
 * The length of an image that will be changed.
 * @throws {DamageError} `E_IMAGE_FILE`: it is not a regular file, or has other names too
 */
async function changeableBytes(path: string): Promise<number> {
  const file = await ImageFile.openForWriting(path);
  try {
    return await file.size();
  } finally {
    await file.close();
  }
}
