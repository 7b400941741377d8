/**
 * The copy room keeps one repository in step with another: whole points with what they are based on, file by
 * file, under the same ids. Nothing is copied that is there already, and nothing is taken over unproven.
 *
 * Read this file first: it copies point by point. Then read choose-points.ts (which points), copy-target.ts
 * (how the other repository is written), copy-files.ts with copied-file.ts and copied-folder.ts (how the copy
 * itself is proven), same-disk.ts (whether two points
 * of one id are the same, though a prune has changed one of them) and follow-prune.ts (what goes from the
 * copy).
 *
 * Nothing here changes the repository that is copied. Points of the other one are only changed by its prune.
 */

import { anySignal } from "../../nbd/index.js";
import { DamageError, PreconditionError } from "../base/errors.js";
import type { Retention } from "../prune/retention.js";
import type { RateLimit } from "../pull/rate-limit.js";
import { type CopiedRecord, readCopied, recordCopied } from "../repository/copied-record.js";
import { type JudgedPoint, judgePoints } from "../repository/judged-points.js";
import { type DiskManifest, diskOf, formatManifest, type Manifest } from "../repository/manifest.js";
import { domainsAmong, ownersOf } from "../repository/point-owners.js";
import type { Repository } from "../repository/repository.js";
import { type ChosenPoints, choosePoints, type WhichPoints } from "./choose-points.js";
import { copyFiles } from "./copy-files.js";
import { type CopyTarget, type MakePoint, writingCopy } from "./copy-target.js";
import { type Followed, followPrune } from "./follow-prune.js";
import { asCopied, imageBytesOf, storedBytesOf } from "./point-files.js";
import { compareDisks } from "./same-disk.js";

export interface CopyOptions {
  readonly from: Repository;
  readonly to: Repository;
  /** The name of its folder, in both. */
  readonly domain: string;
  /**
   * Default: all points but those that were copied before and have been removed in the other repository
   * since. What they are based on comes along.
   */
  readonly which?: WhichPoints | undefined;
  /**
   * Also removes points from the other repository that came from this one, that this one has dropped, and
   * that no rule here keeps. At least one rule has to keep something. Default: nothing is removed.
   */
  readonly remove?: Retention | undefined;
  /** Only find out what would be copied. */
  readonly dryRun?: boolean | undefined;
  readonly limit?: RateLimit | undefined;
  /** How many domains this process copies at a time. They share the memory for an object store. Default 1. */
  readonly domainsAtOnce?: number | undefined;
  readonly signal: AbortSignal;
  readonly onProgress?: ((progress: CopyProgress) => void) | undefined;
  readonly onWarning?: ((message: string) => void) | undefined;
}

/** Bytes of all points that are copied. */
interface CopyProgress {
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
  /** Ids of points that were left out: they were copied before, and have been removed there since. */
  readonly dropped: readonly string[];
  readonly copiedBytes: number;
  /** What was done about `remove`. */
  readonly followed?: Followed | undefined;
}

/**
 * Copies the points of a domain that the other repository lacks, oldest first. A point is there when it is
 * complete and every stored cluster of the copy has been compared with its digest. A point that is damaged,
 * or based on one that is, is left out and told; others are copied all the same.
 *
 * @throws {PreconditionError} `E_OTHER_DOMAIN`: the other repository has another domain's points in that
 *   folder; `E_LOCKED`: another process writes there; with `remove`, `E_SOURCE_EMPTY`: this one has none of
 *   the points any more that came from it, and as `prune`
 * @throws {DamageError} `E_COPY_DIFFERS`: it has a point of the same id with another content; nothing was
 *   copied
 */
export async function copyDomain(options: CopyOptions): Promise<CopyResult> {
  const { from, to, domain, signal } = options;
  return await from.reading(
    domain,
    async () => {
      const judged = await judgePoints(from, domain);
      const copy = async (target: CopyTarget | undefined): Promise<Copied> => {
        // Not before the lock is there: whoever had it may have pruned.
        const there = await judgePoints(to, domain);
        assertSameDomain(judged, there, options);
        await using folder = await to.openDomain(domain);
        const record = await readCopied(folder);
        if (record.others === undefined) options.onWarning?.(unknownRecord(options));
        return await copyAll(options, { judged, there, record }, target);
      };
      const { result, ...came } = options.dryRun
        ? await to.reading(domain, async () => await copy(undefined), signal)
        : await writingCopy(options, new Set(judged.map(({ id }) => id)), copy);
      if (!options.remove) return result;
      const followed = await followPrune(
        { ...options, retention: options.remove },
        { judged, result, ...came },
      );
      return { ...result, followed };
    },
    signal,
  );
}

/** What both repositories have when a copy begins. */
interface Both {
  readonly judged: readonly JudgedPoint[];
  readonly there: readonly JudgedPoint[];
  readonly record: CopiedRecord;
}

interface Copied {
  readonly result: CopyResult;
  /** Ids of points of the other repository that came from this one. */
  readonly theirs: readonly string[];
  /** Whether this one has none of those any more that an earlier copy has recorded. */
  readonly isCutOff: boolean;
}

async function copyAll(options: CopyOptions, both: Both, target: CopyTarget | undefined): Promise<Copied> {
  const { from, which } = options;
  const { judged, there, record } = both;
  const before = record.points.get(from.id) ?? new Set<string>();
  const chosen = choosePoints(judged, there, which, before);
  const copy = new DomainCopy(options, chosen, there);
  const known = new Set([...judged, ...there].map(({ id }) => id));
  const recorded = there.filter(({ id }) => before.has(id));
  const isCutOff = recorded.length > 0 && !judged.some(({ id }) => recorded.some((point) => point.id === id));
  const note = async (): Promise<void> => {
    // A run that refuses to remove anything would have the next one do it.
    if (isCutOff && options.remove) return;
    const both = [...before, ...copy.same].filter((id) => known.has(id) && !copy.damaged.has(id));
    const now = new Set(both);
    const isChanged = now.size !== before.size || both.some((id) => !before.has(id));
    if (isChanged) await target?.record((folder) => recordCopied(folder, record, from.id, now));
  };
  let result: CopyResult;
  try {
    result = await copy.run(target?.make);
  } catch (error) {
    await note().catch(() => undefined);
    throw error;
  }
  // Not before the points are there: one that a killed run has not copied was not dropped.
  await note();
  const came = (id: string): boolean => before.has(id) || copy.same.has(id);
  return { result, theirs: there.map(({ id }) => id).filter(came), isCutOff };
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

function unknownRecord({ to, domain }: CopyOptions): string {
  return `${to.path}: what was copied to ${domain} was recorded there (.copied.json) by another version of nbdpull, which this one can't read: it copies again what was pruned there, each time, and --delete removes nothing. Copy by the version that has written it, or remove that file: then what was pruned there is copied once more, and recorded anew`;
}

class DomainCopy {
  readonly #options: CopyOptions;
  readonly #points: readonly JudgedPoint[];
  /** What the other repository has, by id; grows. */
  readonly #there: Map<string, JudgedPoint>;
  readonly #totalBytes: number;
  readonly #dropped: readonly string[];
  /** Points that could not be copied, or that both have and of which one is damaged. */
  readonly damaged = new Set<string>();
  /** Points that both have with the same content; grows. */
  readonly same = new Set<string>();
  #copiedBytes = 0;

  constructor(options: CopyOptions, { points, dropped }: ChosenPoints, there: readonly JudgedPoint[]) {
    this.#options = options;
    this.#points = points;
    this.#dropped = dropped;
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
      (compared.state === "damaged" ? this.damaged : this.same).add(point.id);
      known.set(point.id, compared);
    }
    const points: CopiedPoint[] = [];
    for (const point of this.#points) points.push(known.get(point.id) ?? (await this.#copy(point, make)));
    const { domain } = this.#options;
    return { domain, points, dropped: this.#dropped, copiedBytes: this.#copiedBytes };
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
        ? "repair it there, or remove the objects of the point, point.json first,"
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
    const damaged = (message: string | undefined): CopiedPoint => {
      this.damaged.add(id);
      return { id, state: "damaged", bytes: 0, message };
    };
    const message = obstacles[0]?.message ?? (manifest ? undefined : "its manifest cannot be read");
    if (!manifest || message !== undefined) return damaged(message);
    const before = this.#copiedBytes;
    try {
      this.#assertFits(manifest);
      if (make) await this.#copyPoint(manifest, make);
    } catch (error) {
      if (!(error instanceof DamageError)) throw error;
      return damaged(error.message);
    }
    this.#there.set(id, { id, manifest, obstacles: [] });
    this.same.add(id);
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
      const { file, format } = (original && diskOf(asCopied(original), name)) ?? {};
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
    const disk = there?.manifest && diskOf(asCopied(there.manifest), name);
    if (!disk || there.obstacles.some(({ point }) => point === id) || this.damaged.has(id)) return undefined;
    return disk.parent === null || this.#soundDisk(disk.parent, name) ? disk : undefined;
  }

  async #copyPoint(manifest: Manifest, make: MakePoint): Promise<void> {
    const { from, domain, signal: stop, limit } = this.#options;
    await make(manifest.id, async (pending) => {
      const text = await copyFiles(pending, {
        ...{ from, domain, manifest, limit },
        signal: anySignal(stop, pending.signal),
        onBytes: (bytes) => this.#progress(bytes),
      });
      await pending.commit({ text }, { sync: true });
    });
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
    const expected = { ...asCopied(original), createdAt: copy.createdAt };
    if (formatManifest(expected) === formatManifest(asCopied(copy))) return undefined;
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
      if (compared === 0 && (hasDigests || imageBytesOf(original, name) > 0)) unknown.push(name);
    }
    if (unknown.length === 0) return undefined;
    return `whether ${unknown.join(", ")} is the same could not be told, for lack of digests that can be compared`;
  }
}
