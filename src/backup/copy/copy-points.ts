/**
 * The copy room keeps one repository in step with another: whole points with what they are based on, file by
 * file, under the same ids. Nothing is copied that is there already, and nothing is taken over unproven.
 *
 * Read this file first: it decides what is missing, and copies point by point. Then read copied-file.ts and
 * copied-folder.ts (how the copy itself is proven) and same-disk.ts (whether two points of one id are the
 * same, though a prune has changed one of them).
 *
 * Nothing here changes the repository that is copied, and no point of the other one.
 */

import { DamageError, PreconditionError } from "../base/errors.js";
import { createAt, type NewFile } from "../image/new-file.js";
import type { RateLimit } from "../pull/rate-limit.js";
import type { HeldLock } from "../repository/domain-lock.js";
import { type JudgedPoint, judgePoints } from "../repository/judged-points.js";
import { largestKept } from "../repository/kept-files.js";
import { type DiskManifest, diskOf, formatManifest, type Manifest, timeOf } from "../repository/manifest.js";
import { makePoint, type PendingPoint } from "../repository/pending-point.js";
import { domainsAmong, ownersOf } from "../repository/point-owners.js";
import { manifestText } from "../repository/read-manifest.js";
import type { Repository } from "../repository/repository.js";
import { makeStoredPoint } from "../repository/stored-point.js";
import type { StoreWriting } from "../storage/stored-writing.js";
import { verifyPoint } from "../verify/verify.js";
import { CopiedFile } from "./copied-file.js";
import { CopiedFolder } from "./copied-folder.js";
import { compareDisks } from "./same-disk.js";

const MIB = 1024 * 1024;
/** What an image may have beside twice its disk, and a digest file beside its records. */
const SPARE_BYTES = 64 * MIB;
/** A record of a digest file for one cluster: head, masks and digest. */
const MOST_RECORD_BYTES = 64;
/** A line for each of 32 million extents. */
const MOST_MAP_BYTES = 4096 * MIB;

export interface CopyOptions {
  readonly from: Repository;
  readonly to: Repository;
  /** The name of its folder, in both. */
  readonly domain: string;
  /** Default: all points. What they are based on comes along. */
  readonly which?: "latest" | { readonly since: Date } | undefined;
  /** Only find out what would be copied. */
  readonly dryRun?: boolean | undefined;
  readonly limit?: RateLimit | undefined;
  readonly signal: AbortSignal;
  readonly onProgress?: ((progress: CopyProgress) => void) | undefined;
}

/** Bytes of all points that are copied. */
export interface CopyProgress {
  readonly copiedBytes: number;
  readonly totalBytes: number;
}

export interface CopiedPoint {
  readonly id: string;
  /** `there`: it was, with the same content. `copied`: it is now, or would be after a dry run. */
  readonly state: "copied" | "there" | "damaged";
  /** Bytes of its files that were copied. */
  readonly bytes: number;
  /** Why it was not copied, or what could not be told of one that was there. */
  readonly message?: string | undefined;
}

export interface CopyResult {
  readonly domain: string;
  /** Oldest first. */
  readonly points: readonly CopiedPoint[];
  readonly copiedBytes: number;
}

/**
 * Copies the points of a domain that the other repository lacks, oldest first. A point is there when it is
 * complete and every stored cluster of the copy has been compared with its digest. A point that is damaged,
 * or based on one that is, is left out and told; others are copied all the same.
 *
 * @throws {PreconditionError} `E_OTHER_DOMAIN`: the other repository has another domain's points in that
 *   folder; `E_LOCKED`: another process writes there
 * @throws {DamageError} `E_COPY_DIFFERS`: it has a point of the same id with another content; nothing was
 *   copied
 */
export async function copyDomain(options: CopyOptions): Promise<CopyResult> {
  const { from, to, domain, signal } = options;
  return await from.reading(
    domain,
    async () => {
      const judged = chosen(await judgePoints(from, domain), options.which);
      const copy = async (make: MakePoint | undefined): Promise<CopyResult> => {
        // Not before the lock is there: whoever had it may have pruned.
        const there = await judgePoints(to, domain);
        assertSameDomain(judged, there, options);
        return await new DomainCopy(options, judged, there).run(make);
      };
      if (options.dryRun) return await to.reading(domain, async () => await copy(undefined), signal);
      if (to.isInStore) {
        return await to.writingInStore(domain, (writing) => copy(inStore(writing, signal)), signal);
      }
      return await to.writing(domain, (held) => copy(inFolder(held)), signal);
    },
    signal,
  );
}

/** Makes a point of that id in the other repository. */
type MakePoint = (id: string, work: (point: PendingPoint) => Promise<void>) => Promise<void>;

function inFolder(held: HeldLock): MakePoint {
  return (copyOf, work) => makePoint(held, work, { copyOf });
}

function inStore(writing: StoreWriting, signal: AbortSignal): MakePoint {
  return (id, work) => makeStoredPoint(writing, work, { id, signal });
}

/** The points that are wanted, and those that they are based on. */
function chosen(judged: readonly JudgedPoint[], which: CopyOptions["which"]): JudgedPoint[] {
  if (which === undefined) return [...judged];
  const wanted = new Set<string>();
  const isWanted = ({ id, manifest }: JudgedPoint): boolean =>
    which === "latest"
      ? id === judged.at(-1)?.id
      : manifest === undefined || timeOf(manifest) >= which.since.getTime();
  for (const point of judged.toReversed()) {
    if (!wanted.has(point.id) && !isWanted(point)) continue;
    wanted.add(point.id);
    for (const { parent } of point.manifest?.disks ?? []) if (parent !== null) wanted.add(parent);
  }
  return judged.filter(({ id }) => wanted.has(id));
}

function assertSameDomain(
  judged: readonly JudgedPoint[],
  there: readonly JudgedPoint[],
  { to, domain }: CopyOptions,
): void {
  const known = (points: readonly JudgedPoint[]): string[] =>
    domainsAmong(ownersOf(points.flatMap(({ manifest }) => manifest ?? []))).filter(
      (owner) => owner !== null,
    );
  const [ours, theirs] = [known(judged), known(there)];
  if (ours.length === 0 || theirs.length === 0 || theirs.some((owner) => ours.includes(owner))) return;
  const message = `the folder ${domain} of ${to.path} has points of another domain (${theirs.join(", ")}): copy to another repository`;
  throw new PreconditionError("E_OTHER_DOMAIN", message, { details: { domain } });
}

class DomainCopy {
  readonly #options: CopyOptions;
  readonly #points: readonly JudgedPoint[];
  /** What the other repository has, by id; grows. */
  readonly #there: Map<string, JudgedPoint>;
  readonly #totalBytes: number;
  /** Points that both have, and of which one is damaged. */
  readonly #damaged = new Set<string>();
  #copiedBytes = 0;

  constructor(options: CopyOptions, points: readonly JudgedPoint[], there: readonly JudgedPoint[]) {
    this.#options = options;
    this.#points = points;
    this.#there = new Map(there.map((point) => [point.id, point]));
    this.#totalBytes = points
      .filter(({ id }) => !this.#there.has(id))
      .reduce((sum, { manifest }) => sum + (manifest ? storedBytesOf(manifest) : 0), 0);
  }

  /** @param make undefined: nothing is written */
  async run(make: MakePoint | undefined): Promise<CopyResult> {
    // All of them first: where the two have different histories, nothing is copied.
    const known = new Map<string, CopiedPoint>();
    for (const point of this.#points) {
      const there = this.#there.get(point.id);
      if (!there) continue;
      const compared = await this.#compared(point, there);
      if (compared.state === "damaged") this.#damaged.add(point.id);
      known.set(point.id, compared);
    }
    const points: CopiedPoint[] = [];
    for (const point of this.#points) points.push(known.get(point.id) ?? (await this.#copy(point, make)));
    return { domain: this.#options.domain, points, copiedBytes: this.#copiedBytes };
  }

  /** What there is to say of a point that both have. */
  async #compared({ id, manifest }: JudgedPoint, there: JudgedPoint): Promise<CopiedPoint> {
    const { to } = this.#options;
    const damaged = (message: string): CopiedPoint => ({ id, state: "damaged", bytes: 0, message });
    // What lies below it is looked at by itself, and may be copied again.
    const obstacle = there.obstacles.find(({ point }) => point === id);
    if (obstacle || !there.manifest) {
      const why = obstacle?.message ?? "its manifest cannot be read";
      const next = to.isInStore
        ? "remove the objects of the point, point.json first,"
        : "repair it there, or remove it";
      return damaged(`it is damaged in ${to.path} (${why}): ${next} to have it copied again`);
    }
    // Of one that is damaged here alone, the copy is the better one.
    if (!manifest) return { id, state: "there", bytes: 0 };
    try {
      const message = await this.#unknown(manifest, there.manifest);
      return { id, state: "there", bytes: 0, message };
    } catch (error) {
      if (!(error instanceof DamageError) || error.code === "E_COPY_DIFFERS") throw error;
      return damaged(error.message);
    }
  }

  async #copy({ id, manifest, obstacles }: JudgedPoint, make: MakePoint | undefined): Promise<CopiedPoint> {
    const message = obstacles[0]?.message ?? (manifest ? undefined : "its manifest cannot be read");
    if (!manifest || message !== undefined) return { id, state: "damaged", bytes: 0, message };
    const before = this.#copiedBytes;
    try {
      this.#assertFits(manifest);
      if (make) await this.#copyPoint(manifest, make);
    } catch (error) {
      if (!(error instanceof DamageError)) throw error;
      return { id, state: "damaged", bytes: 0, message: error.message };
    }
    this.#there.set(id, { id, manifest, obstacles: [] });
    return { id, state: "copied", bytes: make ? this.#copiedBytes - before : storedBytesOf(manifest) };
  }

  /**
   * What an increment needs below it lies in the other repository as its image names it.
   * @throws {DamageError} it does not
   */
  #assertFits({ id, disks }: Manifest): void {
    for (const { name, parent } of disks) {
      if (parent === null) continue;
      const below = this.#soundDisk(parent, name);
      const original = this.#points.find((point) => point.id === parent)?.manifest;
      const { file, format } = (original && diskOf(original, name)) ?? {};
      if (below && below.file === file && below.format === format) continue;
      const why = below ? "has another format there" : "is damaged, or not there";
      throw new DamageError(
        "E_CHAIN",
        `disk ${name} of point ${id} is based on point ${parent}, which ${why}`,
        {
          details: { point: id, disk: name },
        },
      );
    }
  }

  /**
   * A disk of a point of the other repository; undefined if it, or what it is based on, is damaged or
   * missing.
   */
  #soundDisk(id: string, name: string): DiskManifest | undefined {
    const there = this.#there.get(id);
    const disk = there?.manifest && diskOf(there.manifest, name);
    if (!disk || there.obstacles.some(({ point }) => point === id) || this.#damaged.has(id)) return undefined;
    return disk.parent === null || this.#soundDisk(disk.parent, name) ? disk : undefined;
  }

  async #copyPoint(manifest: Manifest, make: MakePoint): Promise<void> {
    const { from, domain, signal: stop, limit } = this.#options;
    const { id } = manifest;
    const copy = async (pending: PendingPoint): Promise<void> => {
      const signal = AbortSignal.any([stop, pending.signal]);
      const files = new Map<string, CopiedFile>();
      let text: string;
      {
        await using folder = await from.openPoint(domain, id);
        text = await manifestText(folder, manifest);
        for (const name of fileNamesOf(manifest)) {
          const create = (mostBytes: number): Promise<NewFile> =>
            createAt(pending.at(name), { mostBytes, inOrder: true });
          const copied = await CopiedFile.copy(folder.at(name), create, {
            most: mostBytesOf(manifest, name),
            limit,
            signal,
            onBytes: (bytes) => this.#progress(bytes),
          });
          files.set(name, copied);
        }
        await this.#prove(manifest, files, signal);
      }
      await pending.commit({ text }, { sync: true });
    };
    await make(id, copy);
  }

  /** @throws {DamageError} what was copied is damaged */
  async #prove(
    manifest: Manifest,
    files: ReadonlyMap<string, CopiedFile>,
    signal: AbortSignal,
  ): Promise<void> {
    const { from, domain } = this.#options;
    const { findings } = await verifyPoint(from, domain, manifest, {
      signal,
      openFolder: async () => new CopiedFolder(await from.openPoint(domain, manifest.id), files),
    });
    const damage = findings.find(({ severity }) => severity === "damage");
    if (!damage) return;
    const where = damage.disk === undefined ? "" : `disk ${damage.disk}: `;
    throw new DamageError("E_CHAIN", `${where}${damage.message}`, { details: { point: manifest.id } });
  }

  #progress(bytes: number): void {
    this.#copiedBytes += bytes;
    this.#options.onProgress?.({ copiedBytes: this.#copiedBytes, totalBytes: this.#totalBytes });
  }

  /**
   * Compares a point that both have.
   * @returns what could not be told; undefined: they are the same
   * @throws {DamageError} `E_COPY_DIFFERS`; or a chain of one of them is broken
   */
  async #unknown(original: Manifest, copy: Manifest): Promise<string | undefined> {
    const { from, to, domain, signal } = this.#options;
    if (formatManifest({ ...original, createdAt: copy.createdAt }) === formatManifest(copy)) return undefined;
    const differs = (what: string): DamageError => {
      const message = `point ${original.id} of ${domain} is another one in ${to.path} than in ${from.path}: ${what}. Copy to another repository, and find out where that point comes from`;
      return new DamageError("E_COPY_DIFFERS", message, { details: { domain, point: original.id } });
    };
    const unknown: string[] = [];
    for (const { name, virtualSize } of original.disks) {
      if (diskOf(copy, name)?.virtualSize !== virtualSize) {
        throw differs(`disk ${name} is missing or has another size`);
      }
      const { differsAt, compared, hasDigests } = await compareDisks(
        { repository: from, domain, point: original },
        { repository: to, domain, point: copy },
        name,
        signal,
      );
      if (differsAt !== undefined) throw differs(`the content of disk ${name} differs at byte ${differsAt}`);
      if (compared === 0 && (hasDigests || dataBytesOf(original, name) > 0)) unknown.push(name);
    }
    if (unknown.length === 0) return undefined;
    return `whether ${unknown.join(", ")} is the same could not be told, for lack of digests that can be compared`;
  }
}

/** The files that a manifest names, but for itself. */
function fileNamesOf({ disks, files = [] }: Manifest): string[] {
  const ofDisks = disks.flatMap(({ file, map, digests }) =>
    [file, map?.file ?? [], digests?.file ?? []].flat(),
  );
  return [...new Set([...files.map(({ file }) => file), ...ofDisks])];
}

function dataBytesOf(point: Manifest, disk: string): number {
  return diskOf(point, disk)?.dataBytes ?? 0;
}

/**
 * Bytes that a file of a point has at most; the same of images allows for tables, and for what a prune left
 * unused.
 */
function mostBytesOf({ disks, files = [] }: Manifest, name: string): number {
  const kept = files.find(({ file }) => file === name);
  if (kept) return Math.min(kept.length, largestKept(kept.role));
  for (const { file, format, digests, virtualSize, clusterSize } of disks) {
    const clusters = Math.ceil(virtualSize / clusterSize);
    if (file === name) return format === "raw" ? virtualSize : 2 * virtualSize + SPARE_BYTES;
    if (digests?.file === name) return clusters * MOST_RECORD_BYTES + SPARE_BYTES;
  }
  return MOST_MAP_BYTES;
}

/** Bytes of data that a point stores, which is nearly all that is copied of it. */
function storedBytesOf({ disks }: Manifest): number {
  return disks.reduce((sum, { storedBytes }) => sum + storedBytes, 0);
}
