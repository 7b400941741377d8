/**
 * The verify room checks that stored points are still what was written: kept files, chain links, image
 * structure, and all data against its digests. It reports every damage it finds instead of stopping at the
 * first.
 *
 * Read this file first, then verify-structure.ts (one qcow2 image) and verify-data.ts (walks over a layer and
 * puts its runs to threads). verify-threads.ts, verify-worker.ts and verify-service.ts are those threads.
 * This room never writes: it repairs nothing and deletes nothing, not even leaked clusters.
 */

import { addAbortListener } from "node:events";
import { type Damage, DamageList, isUnreadable, type OnDamage } from "../base/damage.js";
import { DamageError } from "../base/errors.js";
import { allOrNone } from "../base/in-parallel.js";
import { Progress } from "../base/progress.js";
import { findParentLink, type Link } from "../chain/chain.js";
import { Layer } from "../chain/layer.js";
import { isCryptographic } from "../digest/algorithms.js";
import { damageOf } from "../repository/kept-files.js";
import { type DiskManifest, imageName, type Manifest } from "../repository/manifest.js";
import { uuidOf } from "../repository/point-owners.js";
import type { Repository } from "../repository/repository.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import { verifyData } from "./verify-data.js";
import { type ExpectedBacking, verifyStructure } from "./verify-structure.js";
import { VerifyThreads } from "./verify-threads.js";

/** One difference from what was written. `disk` is undefined if it concerns the point as a whole. */
export interface Finding extends Damage {
  readonly point: string;
  readonly disk?: string | undefined;
  /** A leak wastes space in an image but does no harm; damage means that data is lost or will be. */
  readonly severity: "damage" | "leak";
}

export interface DiskReport {
  readonly disk: string;
  /** Bytes whose digests were compared. */
  readonly verifiedBytes: number;
  /**
   * False if the point has no digests: then only chain, structure and the readability of the data were
   * checked.
   */
  readonly digests: boolean;
  /** True if the digests are cryptographic. Checksums (xxh64) find damage by accident, but no forgery. */
  readonly proven: boolean;
}

export interface PointReport {
  readonly id: string;
  readonly disks: readonly DiskReport[];
  /**
   * First findings about the point, then by disk: damage before leaks, and of each those about a whole file,
   * then by guest offset.
   */
  readonly findings: readonly Finding[];
}

/** Progress of one disk, over all points. */
export interface VerifyProgress {
  readonly verifiedBytes: number;
  readonly totalBytes: number;
}

export interface VerifyOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((disk: string, progress: VerifyProgress) => void) | undefined;
}

/** Most findings of each severity for a disk. Neighbouring damage is already joined, so these are places. */
const MAX_FINDINGS = 1000;
/** While one point is opened and its tables are read, the threads check the data of the other. */
const POINTS_AT_ONCE = 2;

/**
 * Checks every stored byte of the given points: manifests, chain, image structure, tables against the digest
 * file, and data against its digests. The data is checked on as many threads as there are processors.
 * Continues after damage, so that the report names all places (up to 1000 per disk).
 *
 * @param ids folder names of points of `domain`
 */
export async function verifyPoints(
  repository: Repository,
  domain: string,
  ids: readonly string[],
  options: VerifyOptions = {},
): Promise<PointReport[]> {
  const points = await Promise.all(ids.map((id) => readable(repository, domain, id)));
  const progress = new DiskProgress(points, options.onProgress);
  await using threads = new VerifyThreads(bytesOf(points), repository.isInStore);
  // A thread may be in the middle of a long read.
  using _ = options.signal && addAbortListener(options.signal, () => void threads.close());
  const reports = await allOrNone(points, POINTS_AT_ONCE, options.signal, async (point, signal) => {
    if ("findings" in point) return point;
    return await new PointVerifier(repository, domain, point, { threads, progress, signal }).report();
  });
  progress.finish();
  return reports;
}

/**
 * The same for one point whose manifest is known.
 * @param options.openFolder where its files are; default: in the repository
 */
export async function verifyPoint(
  repository: Repository,
  domain: string,
  point: Manifest,
  {
    signal,
    openFolder,
  }: { readonly signal: AbortSignal; readonly openFolder?: (() => Promise<StoredFolder>) | undefined },
): Promise<PointReport> {
  await using threads = new VerifyThreads(bytesOf([point]), openFolder !== undefined);
  const progress = new DiskProgress([point], undefined);
  return await new PointVerifier(repository, domain, point, {
    threads,
    progress,
    signal,
    openFolder,
  }).report();
}

/** The manifest, or what is wrong with it. */
async function readable(repository: Repository, domain: string, id: string): Promise<Manifest | PointReport> {
  try {
    return await repository.point(domain, id);
  } catch (error) {
    if (!(error instanceof DamageError)) throw error;
    return { id, disks: [], findings: [{ point: id, severity: "damage", message: error.message }] };
  }
}

/** The most bytes that are read of the points. Gaps of raw images are read as well. */
function bytesOf(points: readonly (Manifest | PointReport)[]): number {
  const disks = points.flatMap((point) => ("findings" in point ? [] : point.disks));
  return disks.reduce((sum, d) => sum + (d.format === "raw" ? d.virtualSize : d.dataBytes), 0);
}

interface Tools {
  readonly threads: VerifyThreads;
  readonly progress: DiskProgress;
  readonly signal: AbortSignal;
  readonly openFolder?: (() => Promise<StoredFolder>) | undefined;
}

class PointVerifier {
  readonly #repository: Repository;
  readonly #domain: string;
  readonly #point: Manifest;
  readonly #tools: Tools;

  constructor(repository: Repository, domain: string, point: Manifest, tools: Tools) {
    this.#repository = repository;
    this.#domain = domain;
    this.#point = point;
    this.#tools = tools;
  }

  async report(): Promise<PointReport> {
    const { id, disks, files = [] } = this.#point;
    const findings: Finding[] = [];
    {
      await using folder = await this.#open();
      for (const file of files) {
        const message = await damageOf(folder, file, this.#tools.signal);
        if (message !== undefined) findings.push({ point: id, severity: "damage", message });
      }
    }
    const reports: DiskReport[] = [];
    for (const disk of disks) {
      const damages = new DamageList(MAX_FINDINGS);
      const leaks = new DamageList(MAX_FINDINGS);
      reports.push(await this.#verifyDisk(disk, damages.note, leaks.note));
      const found = (severity: Finding["severity"], list: DamageList): Finding[] =>
        list.list().map((damage) => ({ point: id, disk: disk.name, severity, ...damage }));
      findings.push(...found("damage", damages), ...found("leak", leaks));
    }
    return { id, disks: reports, findings };
  }

  async #open(): Promise<StoredFolder> {
    const { openFolder } = this.#tools;
    return (await openFolder?.()) ?? (await this.#repository.openPoint(this.#domain, this.#point.id));
  }

  async #verifyDisk(disk: DiskManifest, onDamage: OnDamage, onLeak: OnDamage): Promise<DiskReport> {
    const { progress, threads, signal } = this.#tools;
    let verifiedBytes = 0;
    try {
      const link = { point: this.#point, disk };
      const backing = await this.#backingOf(link);
      const stranger = await this.#strangerBelow(link);
      if (stranger !== undefined) onDamage({ message: stranger });
      const folder = await this.#open();
      await using layer = await Layer.open(folder, this.#point.id, disk, { signal });
      const told = new Set<string>();
      if (disk.format === "qcow2") {
        const note: OnDamage = (damage) => {
          told.add(keyOf(damage));
          onDamage(damage);
        };
        await verifyStructure(
          layer.stored.remote ?? layer.stored.path,
          backing,
          { onDamage: note, onLeak },
          signal,
        );
      }
      await verifyData(layer, {
        threads,
        signal,
        // The structure check and the walk both find an invalid table entry: report it once.
        onDamage: (damage) => told.has(keyOf(damage)) || onDamage(damage),
        onBytes: (bytes) => {
          verifiedBytes += bytes;
          progress.add(disk, bytes);
        },
      });
    } catch (error) {
      if (isUnreadable(error)) onDamage({ message: `the file system cannot read it: ${error.message}` });
      else if (error instanceof DamageError) onDamage({ message: error.message });
      else throw error;
    }
    // Data that could not be checked counts as done.
    progress.add(disk, disk.dataBytes - verifiedBytes);
    const algorithm = disk.digests?.algorithm;
    return {
      disk: disk.name,
      verifiedBytes: algorithm === undefined ? 0 : verifiedBytes,
      digests: algorithm !== undefined,
      proven: algorithm !== undefined && isCryptographic(algorithm),
    };
  }

  /**
   * The parent's image. One step down the chain is enough, since the parent is checked as a point of its own.
   */
  async #backingOf(link: Link): Promise<ExpectedBacking | undefined> {
    if (link.disk.parent === null) return undefined;
    const { point, disk } = await findParentLink(this.#repository, this.#domain, link);
    return { name: `../${point.id}/${imageName(point, disk)}`, format: disk.format };
  }

  /**
   * Version 0.1 could base an increment on a point of another domain of the same name, by way of a point
   * without UUID. What it restores is of two guests.
   */
  async #strangerBelow(top: Link): Promise<string | undefined> {
    const uuid = uuidOf(top.point.domain);
    if (uuid === null) return undefined;
    for (let link = top; link.disk.parent !== null; ) {
      link = await findParentLink(this.#repository, this.#domain, link);
      const other = uuidOf(link.point.domain);
      if (other === uuid) return undefined;
      if (other !== null) {
        return `its chain leads to point ${link.point.id}, which is of another domain, by its UUID ${other}: take a full backup`;
      }
    }
    return undefined;
  }
}

function keyOf({ message, guestOffset }: Damage): string {
  return `${guestOffset} ${message}`;
}

/** Adds up the checked bytes of each disk over all points. */
class DiskProgress {
  readonly #disks = new Map<
    string,
    { readonly progress: Progress<VerifyProgress>; done: number; total: number }
  >();

  constructor(points: readonly (Manifest | PointReport)[], tell: VerifyOptions["onProgress"]) {
    const disks = points.flatMap((point) => ("findings" in point ? [] : point.disks));
    for (const { name, dataBytes } of disks) {
      const known = this.#disks.get(name);
      if (known) known.total += dataBytes;
      else {
        const progress = new Progress<VerifyProgress>((state) => tell?.(name, state));
        this.#disks.set(name, { progress, done: 0, total: dataBytes });
      }
    }
  }

  add({ name }: DiskManifest, bytes: number): void {
    const disk = this.#disks.get(name);
    if (!disk) return;
    disk.done += bytes;
    disk.progress.note({ verifiedBytes: disk.done, totalBytes: disk.total });
  }

  finish(): void {
    for (const { progress } of this.#disks.values()) progress.finish();
  }
}
