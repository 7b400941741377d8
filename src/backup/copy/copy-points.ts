/**
 * The copy room keeps one repository in step with another: whole points with what they are based on, file by file,
 * under the same ids. Nothing is copied that is there already, and nothing is taken over unproven.
 *
 * Read this file first: it decides what is missing, and copies point by point. Then read copied-file.ts and
 * copied-folder.ts (how the copy itself is proven) and same-disk.ts (whether two points of one id are the same,
 * though a prune has changed one of them).
 *
 * Nothing here changes the repository that is copied, and no point of the other one.
 */

import { DamageError, PreconditionError } from "../base/errors.js";
import type { RateLimit } from "../pull/rate-limit.js";
import type { HeldLock } from "../repository/domain-lock.js";
import { type JudgedPoint, judgePoints } from "../repository/judged-points.js";
import { formatManifest, type Manifest, timeOf } from "../repository/manifest.js";
import { makePoint, type PendingPoint } from "../repository/pending-point.js";
import { domainsAmong, ownersOf } from "../repository/point-owners.js";
import { manifestText } from "../repository/read-manifest.js";
import type { Repository } from "../repository/repository.js";
import { verifyPoint } from "../verify/verify.js";
import { CopiedFile } from "./copied-file.js";
import { CopiedFolder } from "./copied-folder.js";
import { createFile } from "./new-point.js";
import { firstDifference } from "./same-disk.js";

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
  /** Why it was not copied. */
  readonly message?: string | undefined;
}

export interface CopyResult {
  readonly domain: string;
  /** Oldest first. */
  readonly points: readonly CopiedPoint[];
  readonly copiedBytes: number;
}

/**
 * Copies the points of a domain that the other repository lacks, oldest first. A point is there when it is complete
 * and every stored cluster of the copy has been compared with its digest. A point that is damaged, or based on one
 * that is, is left out and told; others are copied all the same.
 *
 * @throws {PreconditionError} `E_OTHER_DOMAIN`: the other repository has another domain's points in that folder;
 *   `E_LOCKED`: another process writes there
 * @throws {DamageError} `E_COPY_DIFFERS`: it has a point of the same id with another content
 */
export async function copyDomain(options: CopyOptions): Promise<CopyResult> {
  const { from, to, domain, signal } = options;
  return await from.reading(
    domain,
    async () => {
      const judged = chosen(await judgePoints(from, domain), options.which);
      const there = await to.points(domain, () => undefined);
      assertSameDomain(judged, there, options);
      const copy = new DomainCopy(options, judged, new Map(there.map((point) => [point.id, point])));
      if (options.dryRun || !copy.hasWork) return await copy.run(undefined);
      return await to.writing(domain, async (held) => await copy.run(held), signal);
    },
    signal,
  );
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
  there: readonly Manifest[],
  { to, domain }: CopyOptions,
): void {
  const known = (points: readonly Manifest[]): string[] =>
    domainsAmong(ownersOf(points)).filter((owner) => owner !== null);
  const [ours, theirs] = [known(judged.flatMap(({ manifest }) => manifest ?? [])), known(there)];
  if (ours.length === 0 || theirs.length === 0 || theirs.some((owner) => ours.includes(owner))) return;
  const message = `the folder ${domain} of ${to.path} has points of another domain (${theirs.join(", ")}): copy to another repository`;
  throw new PreconditionError("E_OTHER_DOMAIN", message, { details: { domain } });
}

class DomainCopy {
  readonly #options: CopyOptions;
  readonly #points: readonly JudgedPoint[];
  /** What the other repository has, by id; grows. */
  readonly #there: Map<string, Manifest>;
  readonly #totalBytes: number;
  #copiedBytes = 0;

  constructor(options: CopyOptions, points: readonly JudgedPoint[], there: Map<string, Manifest>) {
    this.#options = options;
    this.#points = points;
    this.#there = there;
    this.#totalBytes = points
      .filter(({ id }) => !there.has(id))
      .reduce((sum, { manifest }) => sum + (manifest ? storedBytesOf(manifest) : 0), 0);
  }

  get hasWork(): boolean {
    return this.#points.some(({ id }) => !this.#there.has(id));
  }

  /** @param held the right to write; undefined: nothing is written */
  async run(held: HeldLock | undefined): Promise<CopyResult> {
    const points: CopiedPoint[] = [];
    for (const point of this.#points) points.push(await this.#copy(point, held));
    return { domain: this.#options.domain, points, copiedBytes: this.#copiedBytes };
  }

  async #copy({ id, manifest, obstacles }: JudgedPoint, held: HeldLock | undefined): Promise<CopiedPoint> {
    const there = this.#there.get(id);
    if (there && manifest) await this.#assertSame(manifest, there);
    if (there) return { id, state: "there", bytes: 0 };
    const message = obstacles[0]?.message ?? (manifest ? undefined : "its manifest cannot be read");
    if (!manifest || message !== undefined) return { id, state: "damaged", bytes: 0, message };
    if (!held) {
      this.#there.set(id, manifest);
      return { id, state: "copied", bytes: storedBytesOf(manifest) };
    }
    const before = this.#copiedBytes;
    try {
      this.#assertFits(manifest);
      await this.#copyPoint(manifest, held);
    } catch (error) {
      if (!(error instanceof DamageError)) throw error;
      return { id, state: "damaged", bytes: 0, message: error.message };
    }
    this.#there.set(id, manifest);
    return { id, state: "copied", bytes: this.#copiedBytes - before };
  }

  /**
   * What an increment needs below it lies in the other repository as its image names it.
   * @throws {DamageError} it does not
   */
  #assertFits({ id, disks }: Manifest): void {
    for (const { name, parent } of disks) {
      if (parent === null) continue;
      const below = this.#there.get(parent)?.disks.find((disk) => disk.name === name);
      const original = this.#points
        .find((point) => point.id === parent)
        ?.manifest?.disks.find((disk) => disk.name === name);
      if (below && below.file === original?.file && below.format === original.format) continue;
      const why = below ? "has another format there" : "is not there, since it is damaged";
      throw new DamageError(
        "E_CHAIN",
        `disk ${name} of point ${id} is based on point ${parent}, which ${why}`,
        {
          details: { point: id, disk: name },
        },
      );
    }
  }

  async #copyPoint(manifest: Manifest, held: HeldLock): Promise<void> {
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
          const to = await createFile(pending.folder, name);
          try {
            const copied = await CopiedFile.copy(folder.at(name), to, {
              limit,
              signal,
              onBytes: (bytes) => this.#progress(bytes),
            });
            files.set(name, copied);
          } finally {
            await to.close();
          }
        }
        await this.#prove(manifest, files, signal);
      }
      await pending.commit({ text }, { sync: true });
    };
    await makePoint(held, copy, { copyOf: id });
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

  /** @throws {DamageError} `E_COPY_DIFFERS` */
  async #assertSame(original: Manifest, copy: Manifest): Promise<void> {
    const { from, to, domain, signal } = this.#options;
    if (formatManifest({ ...original, createdAt: copy.createdAt }) === formatManifest(copy)) return;
    const differs = (what: string): DamageError => {
      const message = `point ${original.id} of ${domain} is another one in ${to.path} than in ${from.path}: ${what}. Copy to another repository, and find out where that point comes from`;
      return new DamageError("E_COPY_DIFFERS", message, { details: { domain, point: original.id } });
    };
    for (const { name, virtualSize } of original.disks) {
      const other = copy.disks.find((disk) => disk.name === name);
      if (other?.virtualSize !== virtualSize) throw differs(`disk ${name} is missing or has another size`);
      const place = await firstDifference(
        { repository: from, domain, point: original },
        { repository: to, domain, point: copy },
        name,
        signal,
      );
      if (place !== undefined) throw differs(`the content of disk ${name} differs at byte ${place}`);
    }
  }
}

/** The files that a manifest names, but for itself. */
function fileNamesOf({ disks, files = [] }: Manifest): string[] {
  const ofDisks = disks.flatMap(({ file, map, digests }) =>
    [file, map?.file ?? [], digests?.file ?? []].flat(),
  );
  return [...new Set([...files.map(({ file }) => file), ...ofDisks])];
}

/** Bytes of data that a point stores, which is nearly all that is copied of it. */
function storedBytesOf({ disks }: Manifest): number {
  return disks.reduce((sum, { storedBytes }) => sum + storedBytes, 0);
}
