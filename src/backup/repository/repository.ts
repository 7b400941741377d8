/**
 * The repository room knows how points are stored: the folder layout (docs/repository-format.md), manifests,
 * locks, reader marks and the journal of a prune. Everything that reads or writes points uses it.
 *
 * Read this file first, then pending-point.ts (a point that is being made), manifest.ts (what a point says of
 * itself), domain-lock.ts (writers and readers) with reading.ts, and prune-journal.ts, planned-merges.ts and
 * finish-prune.ts with raw-patch.ts (how a dead prune is undone or finished). strangers.ts looks who else can
 * write there. choose-point.ts finds the point that a user names and choose-domain.ts its domain,
 * domain-folder.ts the folder for a domain's next point, folder-name.ts how it may be called, find-folders.ts
 * those that may have points, point-owners.ts whose the points of a folder are, mend-clock.ts mends times of
 * points, points-without-damage.ts what can be restored in spite of damage, kept-files.ts checks a domain's
 * files. marker.ts marks a repository, find-repository.ts finds it, and init-folder.ts and init-store.ts make
 * one; write-in-folder.ts and write-in-store.ts make their caller the only writer. This room knows nothing of
 * libvirt or NBD: it never starts a job and never opens a connection.
 */

import assert from "node:assert/strict";
import { join } from "node:path";
import { DamageError } from "../base/errors.js";
import { HeldFolder } from "../host/held-folder.js";
import { refuseAddress } from "../host/local-path.js";
import { isSamePlace, namesStore } from "../storage/open-store.js";
import type { RecordFolder } from "../storage/record-folder.js";
import type { StoreAbilities, StoredFolder, StoreRoot } from "../storage/stored-folder.js";
import type { KeptVersion, StoredLeftovers, StoreWriting } from "../storage/stored-writing.js";
import type { HeldLock } from "./domain-lock.js";
import { findFolders, foldersWithPoints } from "./find-folders.js";
import { findRepository } from "./find-repository.js";
import { folderNameOf } from "./folder-name.js";
import { initFolder } from "./init-folder.js";
import { initStore } from "./init-store.js";
import { removeLeftovers } from "./leftovers.js";
import type { Manifest } from "./manifest.js";
import { abilitiesIn, noRepository, requireMarker } from "./marker.js";
import {
  type BegunPoint,
  isPoint,
  makePoint,
  type PendingPoint,
  partialName,
  pointIdsIn,
  pointNamesIn,
} from "./pending-point.js";
import { MANIFEST, readManifest, readManifests } from "./read-manifest.js";
import { type OpenDomain, type Reading, readingInFolder, readingInStore, whileReading } from "./reading.js";
import { refuseStore } from "./refuse-store.js";
import { refuseStrangers, tighten } from "./strangers.js";
import { toldOnce } from "./unsafe-store.js";
import { writeInFolder } from "./write-in-folder.js";
import { leftInStore, makePointInStore, writeInStore } from "./write-in-store.js";

export interface RepositoryOptions {
  /** As root too, write to a repository that other users can write to. Default: refuse it. */
  readonly trusted?: boolean | undefined;
  /** Ends every request to an object store. */
  readonly signal?: AbortSignal | undefined;
  /**
   * Told before something is written what is unsafe about writing to this object store: of each repository
   * once, however often it is opened with the same signal.
   */
  readonly onWarning?: ((message: string) => void) | undefined;
}

/**
 * The folder that points are kept in, as docs/repository-format.md describes it. A point exists when its
 * folder has its final name. Afterwards only a prune changes it, and a prune waits for readers that use
 * `reading`. Others may write to it: everything below its folder is opened by {@link HeldFolder}, and a link
 * is never followed.
 *
 * A domain is known by the name of its folder, not by what its manifests say, because a folder may be copied.
 * Wherever a domain is asked for, either its own name or that of its folder can be given.
 */
export class Repository {
  /** The path of its folder, or the address in an object store. */
  readonly path: string;
  readonly id: string;
  readonly #trusted: boolean;
  /** Undefined: it is a folder of this machine. */
  readonly #store: StoreRoot | undefined;
  readonly #onUnsafe: (warning: string) => void;

  private constructor(
    path: string,
    id: string,
    { trusted = false, signal, onWarning }: RepositoryOptions,
    store?: StoreRoot,
    onUnsafe = toldOnce(id, onWarning, signal),
  ) {
    this.#onUnsafe = onUnsafe;
    this.path = path;
    this.id = id;
    this.#trusted = trusted;
    this.#store = store;
  }

  /**
   * @throws {PreconditionError} `E_NO_REPOSITORY`: there is no repository at `path`
   * @throws {UsageError} `E_SCHEME`: `path` looks like an address
   * @throws {DamageError} its marker file cannot be read
   */
  static async open(path: string, options: RepositoryOptions = {}): Promise<Repository> {
    const repository = await Repository.openIfThere(path, options);
    if (repository) return repository;
    if (!namesStore(path)) await refuseAddress(path, "repository");
    throw noRepository(path);
  }

  /**
   * Undefined if there is no repository.
   * @throws {DamageError} the marker file exists and cannot be read
   * @throws for an object store as `openStore`
   */
  static async openIfThere(path: string, options: RepositoryOptions = {}): Promise<Repository | undefined> {
    const found = await findRepository(path, options);
    return found && new Repository(path, found.id, options, found.store);
  }

  /**
   * Opens the repository at `path`, or creates one if the path does not exist or is an empty folder.
   * @throws {UsageError} `path` is something else
   * @throws {PreconditionError} `E_STRANGERS`: as {@link assertTrusted}
   */
  static async openOrCreate(path: string, options: RepositoryOptions = {}): Promise<Repository> {
    if (namesStore(path)) {
      const known = await Repository.openIfThere(path, options);
      if (known) return known;
      await initStore(path, options);
    } else {
      if (!options.trusted) await refuseStrangers(path, []);
      await initFolder(path);
    }
    return await Repository.open(path, options);
  }

  /**
   * The same one, as it is now, with another signal for all requests to an object store, or none: clean-up
   * must run even after the work was aborted.
   */
  withSignal(signal: AbortSignal | undefined): Repository {
    if (!this.#store) return this;
    const store = this.#store.withSignal(signal);
    return new Repository(this.path, this.id, { trusted: this.#trusted }, store, this.#onUnsafe);
  }

  /** Whether it lies in an object store. */
  get isInStore(): boolean {
    return this.#store !== undefined;
  }

  /** The path of its folder without links, or the address in an object store with the endpoint in use. */
  async realPath(): Promise<string> {
    if (this.#store) return await this.#store.realPath();
    await using folder = await this.#holdRoot();
    return folder.realPath;
  }

  /** Whether it lies at a place that `realPath` told at another time. */
  async isAt(place: string): Promise<boolean> {
    return isSamePlace(await this.realPath(), place);
  }

  /**
   * Names of the folders of domains that have points, sorted.
   * @throws {DamageError} `E_LINK`: a symbolic link leads to a folder that would be a domain's
   */
  async domains(): Promise<string[]> {
    await using root = await this.#openRoot();
    return await foldersWithPoints(root);
  }

  /** Names of the folders that may have points, sorted; a link to a folder is one of them. */
  async folders(): Promise<string[]> {
    await using root = await this.#openRoot();
    return await findFolders(root);
  }

  /**
   * The points of a domain, oldest first. A point whose manifest is missing or wrong is left out and reported
   * to `onDamage`, and so is a link that is called like a point.
   */
  async points(domain: string, onDamage: (error: DamageError) => void): Promise<Manifest[]> {
    await using folder = await this.openDomain(domain);
    if (!folder) return [];
    return await readManifests(folder, await pointNamesIn(folder), {
      ...{ domain, isInStore: this.isInStore, onDamage },
      onGone: (id) => this.#noPoint(domain, id),
    });
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
    return await whileReading(await this.beginReading(domain, signal), this.isInStore, work);
  }

  /** Like `reading`, but until the caller releases it. */
  async beginReading(domain: string, signal?: AbortSignal): Promise<Reading> {
    const open: OpenDomain = () => this.openDomain(domain);
    if (this.#store) return await readingInStore(this.#store, folderNameOf(domain), open);
    const hold = (): Promise<HeldFolder | undefined> => this.holdDomain(domain);
    // Whoever began the prune: the journal is checked like everything that is read.
    const finishPrune = () => writeInFolder(this.path, domain, async () => undefined, { signal });
    return await readingInFolder(domain, { hold, open, finishPrune });
  }

  /**
   * Call it before something is written for a domain, or defined from its points.
   * @throws {PreconditionError} `E_STRANGERS`: this is root, others can write to the repository, and it was
   *   not opened as a trusted one
   */
  async assertTrusted(domain: string): Promise<void> {
    if (!this.#trusted) await refuseStrangers(this.path, [folderNameOf(domain)]);
  }

  /**
   * Runs `work` as the only writer of the domain. Takes the rights of others to an older repository away
   * first.
   * @param clear what becomes of partial points that dead runs have left; default: they are removed
   * @throws {PreconditionError} another process writes this domain's points; `E_STRANGERS`: as
   *   {@link assertTrusted}
   */
  async writing<T>(
    domain: string,
    work: (held: HeldLock) => Promise<T>,
    signal?: AbortSignal,
    clear?: (folder: HeldFolder) => Promise<void>,
  ): Promise<T> {
    refuseStore(this.path);
    await this.assertTrusted(domain);
    await tighten(this.path);
    return await writeInFolder(this.path, domain, work, { signal, clear });
  }

  /**
   * Like `writing`, in an object store: the lease of the domain is taken, and what dead runs have left is
   * removed.
   * @param goOnWith ids of points that stay if a dead run had begun to make them; default: none
   * @throws {PreconditionError} `E_LOCKED`: another process writes this domain's points
   * @internal
   */
  async writingInStore<T>(
    domain: string,
    work: (writing: StoreWriting) => Promise<T>,
    signal?: AbortSignal,
    goOnWith?: ReadonlySet<string>,
  ): Promise<T> {
    assert(this.#store, "it is a folder of this machine");
    return await writeInStore(this.#store, folderNameOf(domain), work, {
      ...{ signal, goOnWith },
      onUnsafe: this.#onUnsafe,
    });
  }

  /**
   * Opens a domain's folder to be read. The caller closes it.
   * @returns undefined if there is none
   * @throws {DamageError} `E_LINK`: it is a symbolic link, or no folder
   */
  async openDomain(domain: string): Promise<StoredFolder | undefined> {
    const name = folderNameOf(domain);
    await using root = await this.#openRoot();
    const folder = await root.folder(name);
    if (!folder && !this.#store) await requireMarker(root);
    return folder;
  }

  /** Like `openDomain`, for changes. */
  async holdDomain(domain: string): Promise<HeldFolder | undefined> {
    const name = folderNameOf(domain);
    await using root = await this.#holdRoot();
    const folder = await root.folder(name);
    if (!folder) await requireMarker(root);
    return folder;
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

  /**
   * The records beside a point's manifest, for changes. The caller closes it.
   * @throws {DamageError} as `openPoint`
   * @internal
   */
  async holdRecords(domain: string, id: string): Promise<RecordFolder> {
    return this.#store?.records(folderNameOf(domain), id, MANIFEST) ?? (await this.holdPoint(domain, id));
  }

  /**
   * What the object store that it lies in was found to do when it was made; undefined: nobody has tried.
   * @internal
   */
  async recordedAbilities(): Promise<StoreAbilities | undefined> {
    return this.#store && (await abilitiesIn(this.#store));
  }

  /**
   * What runs have left of points in an object store, or have just begun. In a folder nothing is told.
   * @internal
   */
  async leftInStore(domain: string, signal?: AbortSignal): Promise<readonly StoredLeftovers[]> {
    return this.#store ? await leftInStore(this.#store, folderNameOf(domain), signal) : [];
  }

  /**
   * What stays of a file of a point when it is removed; undefined: nothing.
   * @internal
   */
  async keptVersion(domain: string, id: string, file: string): Promise<KeptVersion | undefined> {
    return await this.#store?.keptVersion(folderNameOf(domain), id, file);
  }

  #noPoint(domain: string, id: string): never {
    const message = `there is no point ${id} of ${domain}: ${this.pointFolder(domain, id)} is missing`;
    throw new DamageError("E_MANIFEST", message, { details: { domain, point: id } });
  }

  /** Whether there is a folder of that point. @throws {DamageError} `E_LINK`: as `openPoint` */
  async hasPoint(domain: string, id: string): Promise<boolean> {
    await using folder = await this.openDomain(domain);
    return folder !== undefined && (await isPoint(folder, id));
  }

  async #openRoot(): Promise<StoredFolder> {
    return this.#store ?? (await this.#holdRoot());
  }

  /** @throws {PreconditionError} `E_STORE_READ_ONLY` */
  async #holdRoot(): Promise<HeldFolder> {
    refuseStore(this.path);
    return await HeldFolder.open(this.path);
  }

  /** The path of a point's folder, for messages. */
  pointFolder(domain: string, id: string): string {
    const folder = `${folderNameOf(domain)}/${id}`;
    return this.#store ? `${this.#store.path}/${folder}` : join(this.path, folder);
  }

  /** @throws {DamageError} the manifest is missing, unreadable, wrong, or another point's */
  async point(domain: string, id: string): Promise<Manifest> {
    await using folder = await this.openPoint(domain, id);
    return await readManifest(folder, id, MANIFEST, { domain });
  }

  /**
   * Runs `work` with a pending point, as the only writer of the domain. Removes first what a dead run
   * left. If `work` ends without a commit, nothing is left.
   *
   * @param begun a point that a dead run has left, to go on with; default: a new one
   * @param imagesAtOnce how many images are made side by side, of this point and of others, which share the
   *   memory for an object store; default 1
   * @throws {PreconditionError} as `writing` does
   * @throws the signal's reason, while waiting for the lock
   */
  async withPendingPoint<T>(
    domain: string,
    work: (point: PendingPoint) => Promise<T>,
    signal?: AbortSignal,
    begun?: BegunPoint,
    imagesAtOnce?: number,
  ): Promise<T> {
    if (this.#store) {
      return await makePointInStore(this.#store, folderNameOf(domain), work, {
        ...{ imagesAtOnce, signal },
        onUnsafe: this.#onUnsafe,
      });
    }
    const clear = (folder: HeldFolder) =>
      removeLeftovers(folder, (name) => begun !== undefined && name === partialName(begun.id));
    return await this.writing(domain, (held) => makePoint(held, work, { begun }), signal, clear);
  }
}
