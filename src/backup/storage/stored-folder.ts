/**
 * The storage room knows what a repository lies in: a folder of this machine, or a prefix in an object store.
 * Both are read by one interface, `StoredFolder`, and whoever only reads points uses nothing else.
 *
 * A folder of this machine is a `HeldFolder` of the host room: what is in it is opened below its descriptor,
 * one name at a time, and no link is followed. Whoever changes points uses that class itself: writing has no
 * one interface, since a folder is changed in place under a lock and a store by replacing objects under a
 * lease. Whoever writes asks where a repository lies (test/imports.test.ts lists the rooms).
 *
 * Read this file first, then open-store.ts, and to read from a store s3-folder.ts, s3-file.ts and
 * read-ahead.ts with kept-pieces.ts. To write there: stored-writing.ts says what it is, s3-writing.ts does it
 * with store-place.ts and point-note.ts, s3-point.ts makes a point with s3-new-file.ts, composed-parts.ts and
 * left-files.ts, and s3-merge.ts replaces images with copy-object.ts and patched-ranges.ts; settle-merge.ts,
 * point-objects.ts and find-leftovers.ts look at what was left. record-folder.ts, domain-records.ts and
 * s3-records.ts are the small files beside points. The others are helpers of one of these.
 */

import type { FilePlace } from "../image/readable-file.js";
import { keepsAll, type StoreAbilities } from "../s3/abilities.js";
import type { RecordFolder } from "./record-folder.js";
import type { KeptVersion, MergeState, StoredLeftovers, StoreWriting } from "./stored-writing.js";

export { keepsAll, type StoreAbilities };

/** What something in a folder is. */
interface Kind {
  isFile(): boolean;
  isDirectory(): boolean;
  isSymbolicLink(): boolean;
}

export interface StoredEntry extends Kind {
  readonly name: string;
}

export interface StoredStatus extends Kind {
  /** Bytes. */
  readonly size: number;
  /** When it was changed last, in milliseconds since 1970; of a file. */
  readonly mtimeMs?: number | undefined;
  /** In an object store: another one whenever it was replaced. */
  readonly etag?: string | undefined;
}

/** Longer than any manifest: one of 1000 disks has 1 MiB. A domain's manifests are in memory together. */
export const MOST_MANIFEST_BYTES = 4 * 1024 * 1024;

/**
 * The folder of a repository in an object store. What was listed of the folders in it is remembered. It is
 * used until `close`, which ends its connections; only disposing of it, as of any folder that was used, does
 * nothing.
 */
export interface StoreRoot extends StoredFolder {
  /** An address that leads here whatever the environment says: with the endpoint, without credentials. */
  realPath(): Promise<string>;
  /** The same one with another signal or none, as it is now. It is closed with this one. */
  withSignal(signal: AbortSignal | undefined): StoreRoot;
  /** Lists what is in a folder anew when it is opened next. */
  refresh(name: string): void;
  /**
   * Tries what the store can do, with small objects that it removes again.
   * @throws {PreconditionError} `E_S3_LACKS`: too little for a repository; `E_S3_ACCESS`: these credentials
   *   may not do it
   */
  probe(): Promise<StoreAbilities>;
  /** Tries only what `StoreAbilities` say, with a small object that it removes again. */
  probeConditions(): Promise<StoreAbilities>;
  /** Removes what a `probe` has left whose process was killed. */
  removeTrials(): Promise<void>;
  /**
   * Has the store end uploads there that were begun a week ago, by a rule of the bucket.
   * @returns whether the rule was put there; false if there was one
   * @throws {PreconditionError} `E_S3_ACCESS`, `E_S3_LACKS`, `E_S3_RULES`
   */
  endOldUploads(): Promise<boolean>;
  /** Whether anything is there, but for names that begin with a dot. */
  isEmpty(): Promise<boolean>;
  /**
   * Creates a file.
   * @param abilities of the store: where it can't create on condition, two who do it at the same time are not
   *   told
   * @returns whether it was created; false if something had that name
   */
  create(name: string, content: string, abilities: StoreAbilities): Promise<boolean>;
  /**
   * Takes the right to write in a folder.
   * @param options.manifest the name of the file that makes a point
   * @param options.isPoint whether a point can be called so: what has other names is left alone
   * @throws {PreconditionError} `E_LOCKED`: another process writes there
   */
  write(name: string, options: StoreWriteOptions): Promise<StoreWriting>;
  /**
   * The records of a point, for changes, which need no lease.
   * @param name of the domain's folder
   * @param manifest the name of the file that makes a point
   */
  records(name: string, id: string, manifest: string): RecordFolder;
  /**
   * What runs have left of points in a folder, or have just begun.
   * @param name of the domain's folder
   */
  leftovers(name: string, options: LookOptions): Promise<StoredLeftovers[]>;
  /**
   * What stays of a file of a point when it is removed; undefined: nothing, or it is missing.
   * @param name of the domain's folder
   */
  keptVersion(name: string, id: string, file: string): Promise<KeptVersion | undefined>;
}

/** How points are known. */
interface LookOptions {
  readonly manifest: string;
  readonly isPoint: (name: string) => boolean;
  /** What a manifest says of a merge. Undefined: it can't be read. */
  readonly mergeState: (manifest: Buffer) => MergeState | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface StoreWriteOptions extends LookOptions {
  readonly abilities: StoreAbilities;
}

/** A folder of a repository, to be read. Nothing that lies in it is trusted. */
export interface StoredFolder extends AsyncDisposable {
  /** For messages. */
  readonly path: string;
  /**
   * Whether a folder in this one gets its name when everything in it is complete. In an object store there
   * are no folders: one is seen as soon as the first file in it is there.
   */
  readonly foldersAppearWhole: boolean;
  /**
   * A folder in this one, which the caller closes.
   * @returns undefined if nothing has that name
   * @throws {DamageError} `E_LINK`: it is a symbolic link, or no folder
   */
  folder(name: string): Promise<StoredFolder | undefined>;
  entries(): Promise<readonly StoredEntry[]>;
  names(): Promise<readonly string[]>;
  /** What has this name; undefined: nothing. A link is not followed. */
  find(name: string): Promise<StoredStatus | undefined>;
  /**
   * The content of a file.
   * @param most bytes that it may have
   * @throws {DamageError} `E_LINK`: it is no plain file, or it is longer
   * @throws `ENOENT`: it is missing
   */
  read(name: string, most: number): Promise<Buffer>;
  /**
   * Where a file in this folder is, whether there is one or not. It ends with `close`.
   * @throws {RangeError} `name` is a path
   */
  at(name: string): FilePlace;
  close(): Promise<void>;
}
