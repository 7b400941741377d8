/**
 * The repository room knows how points are stored: the folder layout (docs/repository-format.md), manifests,
 * locks, reader marks and the journal of a prune. Everything that reads or writes points uses it.
 *
 * Read this file first, then manifest.ts (what a point says of itself), domain-lock.ts (writers and readers)
 * and prune-journal.ts with raw-patch.ts (how a dead prune is undone or finished). choose-point.ts finds the
 * point that a user names, restorable-points.ts what can be restored in spite of damage, kept-files.ts checks
 * a domain's files. This room knows nothing of libvirt or NBD: it never starts a job and never opens a
 * connection.
 */

import { randomUUID } from "node:crypto";
import { link, mkdir, readdir, readFile, rename, rm, rmdir, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { BackupError, DamageError, hasCode, PreconditionError, UsageError } from "../base/errors.js";
import { parseJson } from "../base/json.js";
import { isMissing, makeFolders, syncFolder } from "../host/durable-files.js";
import { type HeldLock, markReader, type ReaderMark, takeLock } from "./domain-lock.js";
import {
  formatManifest,
  isPointId,
  type Manifest,
  parseManifest,
  pointIdAt,
  timeOfPointId,
} from "./manifest.js";
import {
  finishJournal,
  hiddenPoints,
  type PruneJournal,
  readJournal,
  removeLeftovers,
} from "./prune-journal.js";

const MARKER = "nbdpull.json";
const MANIFEST = "point.json";
const PARTIAL = ".partial";
/** Folder that some file systems create in their root. */
const LOST_AND_FOUND = "lost+found";
/** Leaves room for suffixes in a name of 255 bytes. */
const MAX_DOMAIN_BYTES = 200;

const marker = z.object({
  format: z.literal("nbdpull-repository"),
  version: z.literal(1),
  id: z.uuid(),
});

/** A point that is still being made, in a folder that readers ignore. */
export interface PendingPoint {
  readonly id: string;
  /** The folder in which its files are created. */
  readonly folder: string;
  /** Aborted when the domain's lock was lost; a commit then fails. */
  readonly signal: AbortSignal;
  /** Set if the clock is behind the newest point. */
  readonly clockWarning: string | undefined;
  /**
   * Writes the manifest, flushes everything to stable storage and gives the folder its final name. From then
   * on the point exists.
   */
  commit(manifest: Manifest, options: { readonly sync: boolean }): Promise<void>;
}

/** A reader of a domain's points, from `beginReading` to `release`. */
export interface Reading {
  /** @throws {BackupError} a prune did not see this reader's mark, and has changed points meanwhile */
  assertUnpruned(): Promise<void>;
  release(): Promise<void>;
}

/**
 * The folder that points are kept in, as docs/repository-format.md describes it. A point exists when its
 * folder has its final name. Afterwards only a prune changes it, and a prune waits for readers that use
 * `reading`. Links are not followed.
 *
 * A domain is known by the name of its folder, not by what its manifests say, because a folder may be copied.
 */
export class Repository {
  readonly path: string;
  readonly id: string;

  private constructor(path: string, id: string) {
    this.path = path;
    this.id = id;
  }

  /**
   * @throws {PreconditionError} there is no repository at `path`
   * @throws {DamageError} its marker file cannot be read
   */
  static async open(path: string): Promise<Repository> {
    const repository = await Repository.openIfThere(path);
    if (repository) return repository;
    const message = `there is no repository at ${path}: ${MARKER} is not there`;
    throw new PreconditionError("E_NO_REPOSITORY", message, { details: { path } });
  }

  /** Undefined if there is no repository. @throws {DamageError} the marker file exists and cannot be read */
  static async openIfThere(path: string): Promise<Repository | undefined> {
    let text: string;
    try {
      text = await readFile(join(path, MARKER), "utf8");
    } catch (cause) {
      if (isMissing(cause) || hasCode(cause, "ENOTDIR")) return undefined;
      throw cause;
    }
    const parsed = marker.safeParse(parseJson(text));
    if (parsed.success) return new Repository(path, parsed.data.id);
    const message = `${join(path, MARKER)} is not the mark of a repository of version 1`;
    throw new DamageError("E_REPOSITORY", message, { details: { path } });
  }

  /**
   * Opens the repository at `path`, or creates one if the path does not exist or is an empty folder.
   * @throws {UsageError} `path` is something else
   */
  static async openOrCreate(path: string): Promise<Repository> {
    const present = await foldersAndFiles(path);
    if (present.includes(MARKER)) return await Repository.open(path);
    if (present.some((name) => !name.startsWith(".") && name !== LOST_AND_FOUND)) throw notARepository(path);
    const id = randomUUID();
    const temporary = join(path, `.${MARKER}.${id}`);
    const text = `${JSON.stringify({ format: "nbdpull-repository", version: 1, id }, null, 2)}\n`;
    await writeFile(temporary, text, { flush: true });
    // Unlike rename, link never replaces a marker that another process may have made meanwhile.
    await link(temporary, join(path, MARKER)).catch((error: unknown) => {
      if (!hasCode(error, "EEXIST")) return rename(temporary, join(path, MARKER));
      return undefined;
    });
    await unlink(temporary).catch(() => undefined);
    await syncFolder(path);
    return await Repository.open(path);
  }

  /** Names of the domains that have points, sorted. */
  async domains(): Promise<string[]> {
    const entries = await readdir(this.path, { withFileTypes: true });
    const names = entries
      .filter((entry) => entry.isDirectory() && isDomainName(entry.name) && entry.name !== LOST_AND_FOUND)
      .map((entry) => entry.name)
      .sort();
    const counts = await Promise.all(names.map((name) => this.pointIds(name)));
    return names.filter((_, i) => counts[i]?.length !== 0);
  }

  /**
   * The points of a domain, oldest first. A point whose manifest is missing or wrong is left out and reported
   * to `onDamage`.
   */
  async points(domain: string, onDamage: (error: DamageError) => void): Promise<Manifest[]> {
    const points: Manifest[] = [];
    for (const id of await this.pointIds(domain)) {
      try {
        points.push(await this.point(domain, id));
      } catch (error) {
        if (!(error instanceof DamageError)) throw error;
        onDamage(error);
      }
    }
    return points;
  }

  /** The ids of a domain's points, oldest first, whether their manifests can be read or not. */
  async pointIds(domain: string): Promise<string[]> {
    const entries = await readdir(this.domainFolder(domain), { withFileTypes: true }).catch(
      (error: unknown) => {
        if (isMissing(error)) return [];
        throw error;
      },
    );
    const ids = entries
      .filter((entry) => entry.isDirectory() && isPointId(entry.name))
      .map((entry) => entry.name)
      .sort();
    if (ids.length === 0) return ids;
    const hidden = await hiddenPoints(this.domainFolder(domain));
    return ids.filter((id) => !hidden.includes(id));
  }

  /**
   * Runs `work`, which reads points of the domain. A prune waits until `work` has ended. If a prune died
   * while it published, it is finished first.
   * @throws {BackupError} a prune did not see this reader's mark, and has changed points meanwhile
   */
  async reading<T>(domain: string, work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    const begun = await this.beginReading(domain, signal);
    try {
      const result = await work();
      await begun.assertUnpruned();
      return result;
    } finally {
      await begun.release();
    }
  }

  /** Like `reading`, but until the caller releases it. */
  async beginReading(domain: string, signal?: AbortSignal): Promise<Reading> {
    const folder = this.domainFolder(domain);
    for (;;) {
      const mark = await markReader(folder);
      try {
        // Read after the mark was made, since a prune looks for marks after it has written the journal.
        const journal = await readJournal(folder);
        if (journal?.phase !== "publish") return await this.#readingOf(domain, mark, journal);
      } catch (error) {
        await mark.release();
        throw error;
      }
      await mark.release();
      // `writing` finishes the prune.
      await this.writing(domain, async () => undefined, signal);
    }
  }

  async #readingOf(domain: string, mark: ReaderMark, journal: PruneJournal | undefined): Promise<Reading> {
    const ids = await this.pointIds(domain);
    return {
      assertUnpruned: async () => {
        if (!(await mark.isThere())) await this.#assertUnpruned(domain, ids, journal);
      },
      release: () => mark.release(),
    };
  }

  /** @throws {BackupError} points are gone, or a prune that was running has ended */
  async #assertUnpruned(
    domain: string,
    ids: readonly string[],
    journal: PruneJournal | undefined,
  ): Promise<void> {
    const now = await this.pointIds(domain);
    const phase = (await readJournal(this.domainFolder(domain)))?.phase;
    const ended = journal?.phase === "overwrite" && phase !== "overwrite";
    if (!ended && ids.every((id) => now.includes(id))) return;
    const message = `points of ${domain} were pruned while they were read, and the prune could not know of it (was this process suspended, or the repository not writable?): what was read may be wrong, read it again`;
    throw new BackupError("E_PRUNED_MEANWHILE", message, { details: { domain } });
  }

  /**
   * Runs `work` as the only writer of the domain.
   * @throws {PreconditionError} another process writes this domain's points
   */
  async writing<T>(domain: string, work: (held: HeldLock) => Promise<T>, signal?: AbortSignal): Promise<T> {
    const folder = this.domainFolder(domain);
    await makeFolders(folder);
    const held = await takeLock(folder, domain, signal);
    try {
      await finishJournal(folder, held.assertHeld);
      await removeLeftovers(folder);
      return await work(held);
    } finally {
      await held.release();
      // Removes the folder only if it is empty, as after a first point that failed.
      await rmdir(folder).catch(() => undefined);
    }
  }

  pointFolder(domain: string, id: string): string {
    return join(this.domainFolder(domain), id);
  }

  /** @throws {DamageError} the manifest is missing, unreadable, wrong, or another point's */
  async point(domain: string, id: string): Promise<Manifest> {
    const path = join(this.pointFolder(domain, id), MANIFEST);
    const fail = (what: string, cause?: unknown): DamageError =>
      new DamageError("E_MANIFEST", what, { cause, details: { domain, point: id } });
    let text: string;
    try {
      text = await readFile(path, "utf8");
    } catch (cause) {
      if (hasCode(cause, "EACCES")) throw cause;
      if (isMissing(cause)) throw fail(`point ${id} of ${domain} has no manifest: ${path} is missing`, cause);
      throw fail(`the manifest of point ${id} of ${domain} cannot be read: ${String(cause)}`, cause);
    }
    const manifest = parseManifest(text, path, { domain, point: id });
    if (manifest.id !== id) {
      throw fail(`${path} is the manifest of point ${manifest.id}: the folder was renamed`);
    }
    return manifest;
  }

  /**
   * Runs `work` with a new pending point, as the only writer of the domain. Removes first what a dead run
   * left. If `work` ends without a commit, nothing is left.
   *
   * @throws {PreconditionError} another process writes this domain's points
   * @throws the signal's reason, while waiting for the lock
   */
  async withPendingPoint<T>(
    domain: string,
    work: (point: PendingPoint) => Promise<T>,
    signal?: AbortSignal,
  ): Promise<T> {
    const folder = this.domainFolder(domain);
    const inLock = async (held: HeldLock): Promise<T> => {
      const { id, clockWarning } = await this.#newId(domain);
      const partial = join(folder, `.${id}${PARTIAL}`);
      await mkdir(partial);
      try {
        return await work({
          id,
          folder: partial,
          signal: held.lost,
          clockWarning,
          commit: async (manifest, options) => {
            held.lost.throwIfAborted();
            await commit(partial, join(folder, id), manifest, options);
          },
        });
      } finally {
        await rm(partial, { recursive: true, force: true });
      }
    };
    return await this.writing(domain, inLock, signal);
  }

  async #newId(domain: string): Promise<{ id: string; clockWarning: string | undefined }> {
    const now = pointIdAt(new Date());
    const newest = (await this.pointIds(domain)).at(-1);
    if (newest === undefined || now > newest) return { id: now, clockWarning: undefined };
    const id = pointIdAt(new Date(timeOfPointId(newest) + 1));
    return {
      id,
      clockWarning: `the clock stands before the newest point ${newest}: this point is called ${id}`,
    };
  }

  /** @throws {UsageError} the name cannot be a folder's name */
  domainFolder(domain: string): string {
    if (isDomainName(domain)) return join(this.path, domain);
    throw new UsageError("E_DOMAIN_NAME", `"${domain}" cannot be the name of a domain's folder`);
  }
}

function isDomainName(name: string): boolean {
  const isOurs = name === MARKER || name.startsWith(".");
  return name !== "" && !isOurs && !/[/\0]/.test(name) && Buffer.byteLength(name) <= MAX_DOMAIN_BYTES;
}

/** The names in the folder at `path`, which is created if missing. */
async function foldersAndFiles(path: string): Promise<string[]> {
  try {
    await makeFolders(path);
    return await readdir(path);
  } catch (error) {
    if (hasCode(error, "EEXIST") || hasCode(error, "ENOTDIR")) throw notARepository(path);
    throw error;
  }
}

function notARepository(path: string): UsageError {
  const message = `${path} is not empty and not a repository: name an empty folder, a new one, or a repository`;
  return new UsageError("E_NOT_A_REPOSITORY", message, { details: { path } });
}

/**
 * With `sync`, flushes the folder's content before it gets its final name, and that name before this returns.
 */
async function commit(
  partial: string,
  final: string,
  manifest: Manifest,
  options: { readonly sync: boolean },
): Promise<void> {
  await writeFile(join(partial, MANIFEST), formatManifest(manifest), { flag: "wx", flush: options.sync });
  if (options.sync) await syncFolder(partial);
  await rename(partial, final);
  if (options.sync) await syncFolder(join(final, ".."));
}
