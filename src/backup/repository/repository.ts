/**
 * The repository room knows how points are stored: the folder layout (docs/repository-format.md), manifests,
 * locks, reader marks and the journal of a prune. Everything that reads or writes points uses it.
 *
 * Read this file first, then pending-point.ts (a point that is being made), manifest.ts (what a point says of
 * itself), domain-lock.ts (writers and readers), and prune-journal.ts, planned-merges.ts and finish-prune.ts with
 * raw-patch.ts (how a dead prune is undone or finished). strangers.ts looks who else can write there.
 * choose-point.ts finds the point that a user names and choose-domain.ts its domain, domain-folder.ts the folder
 * for a domain's next point, folder-name.ts how it may be called, point-owners.ts whose the points of a folder
 * are, mend-clock.ts mends times of points, restorable-points.ts what can be restored in spite of damage, kept-files.ts checks
 * a domain's files. This room knows nothing of libvirt or NBD: it never starts a job and never opens a
 * connection.
 */

import { randomUUID } from "node:crypto";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { BackupError, DamageError, hasCode, PreconditionError, UsageError } from "../base/errors.js";
import { parseJson } from "../base/json.js";
import { isMissing, makeFolders } from "../host/durable-files.js";
import { HeldFolder } from "../host/held-folder.js";
import { refuseAddress } from "../host/local-path.js";
import type { FilePlace } from "../image/readable-file.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import { type HeldLock, markReader, type ReaderMark, takeLock } from "./domain-lock.js";
import { finishJournal } from "./finish-prune.js";
import { folderNameOf, isFolderName, LOST_AND_FOUND, MARKER } from "./folder-name.js";
import { removeLeftovers } from "./leftovers.js";
import type { Manifest } from "./manifest.js";
import { makePoint, type PendingPoint, pointIdsIn, pointNamesIn } from "./pending-point.js";
import { type PruneJournal, readJournal } from "./prune-journal.js";
import { MANIFEST, readManifest } from "./read-manifest.js";
import { refuseStrangers, tighten } from "./strangers.js";

/** Longer than any marker. */
const MOST_MARKER_BYTES = 64 * 1024;

const marker = z.object({
  format: z.literal("nbdpull-repository"),
  version: z.literal(1),
  id: z.uuid(),
});

export interface RepositoryOptions {
  /** As root too, write to a repository that other users can write to. Default: refuse it. */
  readonly trusted?: boolean | undefined;
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
 * `reading`. Others may write to it: everything below its folder is opened by {@link HeldFolder}, and a link is
 * never followed.
 *
 * A domain is known by the name of its folder, not by what its manifests say, because a folder may be copied.
 * Wherever a domain is asked for, either its own name or that of its folder can be given.
 */
export class Repository {
  readonly path: string;
  readonly id: string;
  readonly #trusted: boolean;

  private constructor(path: string, id: string, trusted: boolean) {
    this.path = path;
    this.id = id;
    this.#trusted = trusted;
  }

  /**
   * @throws {PreconditionError} `E_NO_REPOSITORY`: there is no repository at `path`
   * @throws {UsageError} `E_SCHEME`: `path` looks like an address
   * @throws {DamageError} its marker file cannot be read
   */
  static async open(path: string, options: RepositoryOptions = {}): Promise<Repository> {
    const repository = await Repository.openIfThere(path, options);
    if (repository) return repository;
    await refuseAddress(path);
    const message = `there is no repository at ${path}: ${MARKER} is not there`;
    throw new PreconditionError("E_NO_REPOSITORY", message, { details: { path } });
  }

  /** Undefined if there is no repository. @throws {DamageError} the marker file exists and cannot be read */
  static async openIfThere(path: string, options: RepositoryOptions = {}): Promise<Repository | undefined> {
    const folder = await HeldFolder.open(path).catch((cause: unknown) => {
      if (isMissing(cause) || hasCode(cause, "ENOTDIR")) return undefined;
      throw cause;
    });
    await using _ = folder;
    if (!folder) return undefined;
    const wrong = (why: string, cause?: unknown): DamageError =>
      new DamageError(
        "E_REPOSITORY",
        `${join(path, MARKER)} is not the mark of a repository of version 1${why}`,
        {
          cause,
          details: { path },
        },
      );
    let text: string;
    try {
      text = (await folder.read(MARKER, MOST_MARKER_BYTES)).toString("utf8");
    } catch (cause) {
      if (isMissing(cause)) return undefined;
      if (hasCode(cause, "E_LINK")) throw wrong(`: ${cause.message}`, cause);
      throw cause;
    }
    const parsed = marker.safeParse(parseJson(text));
    if (parsed.success) return new Repository(path, parsed.data.id, options.trusted ?? false);
    throw wrong("");
  }

  /**
   * Opens the repository at `path`, or creates one if the path does not exist or is an empty folder.
   * @throws {UsageError} `path` is something else
   * @throws {PreconditionError} `E_STRANGERS`: as {@link assertTrusted}
   */
  static async openOrCreate(path: string, options: RepositoryOptions = {}): Promise<Repository> {
    if (!options.trusted) await refuseStrangers(path, []);
    await using folder = await newOrExisting(path);
    const present = await folder.names();
    if (present.includes(MARKER)) return await Repository.open(path, options);
    if (present.some((name) => !name.startsWith(".") && name !== LOST_AND_FOUND)) throw notARepository(path);
    const id = randomUUID();
    const text = `${JSON.stringify({ format: "nbdpull-repository", version: 1, id }, null, 2)}\n`;
    // Another process may make it meanwhile, too.
    await folder.createWhole(MARKER, text);
    await folder.sync();
    return await Repository.open(path, options);
  }

  /** The path of its folder without links. */
  async realPath(): Promise<string> {
    await using folder = await this.#holdRoot();
    return folder.realPath;
  }

  /**
   * Names of the folders of domains that have points, sorted.
   * @throws {DamageError} `E_LINK`: a symbolic link leads to a folder that would be a domain's
   */
  async domains(): Promise<string[]> {
    const names = await this.folders();
    const withPoints: string[] = [];
    // One after the other: each takes descriptors, and others may have made any number of folders.
    for (const name of names) if (await this.#hasPoints(name)) withPoints.push(name);
    return withPoints;
  }

  /** Names of the folders that may have points, sorted; a link to a folder is one of them. */
  async folders(): Promise<string[]> {
    await using root = await this.#openRoot();
    const names: string[] = [];
    for (const entry of await root.entries()) {
      const isFolder =
        entry.isDirectory() || (entry.isSymbolicLink() && (await leadsToFolder(root.at(entry.name))));
      if (isFolder && isFolderName(entry.name)) names.push(entry.name);
    }
    return names.sort();
  }

  async #hasPoints(folder: string): Promise<boolean> {
    try {
      return (await this.pointNames(folder)).length > 0;
    } catch (error) {
      // The file system's own, which only root may read. A domain may be called so, though.
      if (folder === LOST_AND_FOUND && hasCode(error, "EACCES")) return false;
      throw error;
    }
  }

  /**
   * The points of a domain, oldest first. A point whose manifest is missing or wrong is left out and reported
   * to `onDamage`, and so is a link that is called like a point.
   */
  async points(domain: string, onDamage: (error: DamageError) => void): Promise<Manifest[]> {
    const points: Manifest[] = [];
    for (const id of await this.pointNames(domain)) {
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
    await using folder = await this.openDomain(domain);
    return folder ? await pointIdsIn(folder) : [];
  }

  /** Like `pointIds`, with links that are called like points: nothing follows them, and they are damage. */
  async pointNames(domain: string): Promise<string[]> {
    await using folder = await this.openDomain(domain);
    return folder ? await pointNamesIn(folder) : [];
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
    for (;;) {
      const folder = await this.holdDomain(domain);
      // Nothing can be read there, and nothing pruned.
      if (!folder) return { assertUnpruned: async () => undefined, release: async () => undefined };
      const mark = await markReader(folder).catch(async (error: unknown) => {
        await folder.close();
        throw error;
      });
      try {
        // Read after the mark was made, since a prune looks for marks after it has written the journal.
        const journal = await readJournal(folder);
        if (journal?.phase !== "publish") return await this.#readingOf(domain, { folder, mark, journal });
      } catch (error) {
        await mark.release();
        await folder.close();
        throw error;
      }
      await mark.release();
      await folder.close();
      // This finishes the prune, whoever began it: the journal is checked like everything that is read.
      await this.#writing(domain, async () => undefined, signal);
    }
  }

  async #readingOf(
    domain: string,
    {
      folder,
      mark,
      journal,
    }: {
      readonly folder: HeldFolder;
      readonly mark: ReaderMark;
      readonly journal: PruneJournal | undefined;
    },
  ): Promise<Reading> {
    const ids = await pointIdsIn(folder);
    return {
      assertUnpruned: async () => {
        if (!(await mark.isThere())) await this.#assertUnpruned(domain, ids, journal);
      },
      release: async () => {
        await mark.release();
        await folder.close();
      },
    };
  }

  /** @throws {BackupError} points are gone, or a prune that was running has ended */
  async #assertUnpruned(
    domain: string,
    ids: readonly string[],
    journal: PruneJournal | undefined,
  ): Promise<void> {
    await using folder = await this.openDomain(domain);
    const now = folder ? await pointIdsIn(folder) : [];
    const phase = folder && (await readJournal(folder))?.phase;
    const ended = journal?.phase === "overwrite" && phase !== "overwrite";
    if (!ended && ids.every((id) => now.includes(id))) return;
    const message = `points of ${domain} were pruned while they were read, and the prune could not know of it (was this process suspended, or the repository not writable?): what was read may be wrong, read it again`;
    throw new BackupError("E_PRUNED_MEANWHILE", message, { details: { domain } });
  }

  /**
   * Call it before something is written for a domain, or defined from its points.
   * @throws {PreconditionError} `E_STRANGERS`: this is root, others can write to the repository, and it was not
   *   opened as a trusted one
   */
  async assertTrusted(domain: string): Promise<void> {
    if (!this.#trusted) await refuseStrangers(this.path, [folderNameOf(domain)]);
  }

  /**
   * Runs `work` as the only writer of the domain. Takes the rights of others to an older repository away first.
   * @throws {PreconditionError} another process writes this domain's points; `E_STRANGERS`: as
   *   {@link assertTrusted}
   */
  async writing<T>(domain: string, work: (held: HeldLock) => Promise<T>, signal?: AbortSignal): Promise<T> {
    await this.assertTrusted(domain);
    await tighten(this.path);
    return await this.#writing(domain, work, signal);
  }

  async #writing<T>(
    domain: string,
    work: (held: HeldLock) => Promise<T>,
    signal: AbortSignal | undefined,
  ): Promise<T> {
    const held = await takeLock(() => this.#makeDomain(domain), domain, signal);
    try {
      await finishJournal(held.folder, held.assertHeld);
      await removeLeftovers(held.folder);
      return await work(held);
    } finally {
      await held.release();
      await using root = await this.#holdRoot();
      // Removes the folder only if it is empty, as after a first point that failed.
      const name = folderNameOf(domain);
      if (name !== LOST_AND_FOUND) await root.removeEmpty(name).catch(() => undefined);
    }
  }

  async #makeDomain(domain: string): Promise<HeldFolder> {
    const name = folderNameOf(domain);
    await makeFolders(this.path);
    await using root = await this.#holdRoot();
    for (;;) {
      const folder = await root.folder(name);
      if (folder) return folder;
      await root.makeFolder(name).catch((error: unknown) => {
        if (!hasCode(error, "EEXIST")) throw error;
      });
      await root.sync();
    }
  }

  /**
   * Opens a domain's folder to be read. The caller closes it.
   * @returns undefined if there is none
   * @throws {DamageError} `E_LINK`: it is a symbolic link, or no folder
   */
  async openDomain(domain: string): Promise<StoredFolder | undefined> {
    const name = folderNameOf(domain);
    await using root = await this.#openRoot();
    return await root.folder(name);
  }

  /** Like `openDomain`, for changes. */
  async holdDomain(domain: string): Promise<HeldFolder | undefined> {
    const name = folderNameOf(domain);
    await using root = await this.#holdRoot();
    return await root.folder(name);
  }

  /**
   * Opens a point's folder to be read. The caller closes it.
   * @throws {DamageError} `E_MANIFEST`: there is none; `E_LINK`: it is a symbolic link, or no folder
   */
  async openPoint(domain: string, id: string): Promise<StoredFolder> {
    await using folder = await this.openDomain(domain);
    return (await folder?.folder(id)) ?? this.#noPoint(domain, id);
  }

  /** Like `openPoint`, for changes. */
  async holdPoint(domain: string, id: string): Promise<HeldFolder> {
    await using folder = await this.holdDomain(domain);
    return (await folder?.folder(id)) ?? this.#noPoint(domain, id);
  }

  #noPoint(domain: string, id: string): never {
    const message = `there is no point ${id} of ${domain}: ${this.pointFolder(domain, id)} is missing`;
    throw new DamageError("E_MANIFEST", message, { details: { domain, point: id } });
  }

  /** Whether there is a folder of that point. @throws {DamageError} `E_LINK`: as `openPoint` */
  async hasPoint(domain: string, id: string): Promise<boolean> {
    await using folder = await this.openDomain(domain);
    await using point = await folder?.folder(id);
    return point !== undefined;
  }

  async #openRoot(): Promise<StoredFolder> {
    return await this.#holdRoot();
  }

  async #holdRoot(): Promise<HeldFolder> {
    return await HeldFolder.open(this.path);
  }

  /** The path of a point's folder, for messages. */
  pointFolder(domain: string, id: string): string {
    return join(this.path, folderNameOf(domain), id);
  }

  /** @throws {DamageError} the manifest is missing, unreadable, wrong, or another point's */
  async point(domain: string, id: string): Promise<Manifest> {
    await using folder = await this.openPoint(domain, id);
    return await readManifest(folder, id, MANIFEST, { domain });
  }

  /**
   * Runs `work` with a new pending point, as the only writer of the domain. Removes first what a dead run
   * left. If `work` ends without a commit, nothing is left.
   *
   * @throws {PreconditionError} as `writing` does
   * @throws the signal's reason, while waiting for the lock
   */
  async withPendingPoint<T>(
    domain: string,
    work: (point: PendingPoint) => Promise<T>,
    signal?: AbortSignal,
  ): Promise<T> {
    return await this.writing(domain, (held) => makePoint(held, work), signal);
  }
}

/** Only looks where a link leads; nothing is opened there. */
async function leadsToFolder(place: FilePlace): Promise<boolean> {
  if (typeof place !== "string") return false;
  return await stat(place).then(
    (found) => found.isDirectory(),
    () => false,
  );
}

/** The folder at `path`, which is created if missing. */
async function newOrExisting(path: string): Promise<HeldFolder> {
  try {
    await makeFolders(path);
    return await HeldFolder.open(path);
  } catch (error) {
    if (hasCode(error, "EEXIST") || hasCode(error, "ENOTDIR")) throw notARepository(path);
    throw error;
  }
}

function notARepository(path: string): UsageError {
  const message = `${path} is not empty and not a repository: name an empty folder, a new one, or a repository`;
  return new UsageError("E_NOT_A_REPOSITORY", message, { details: { path } });
}
