import type { NewFile, RemoteNewFile } from "../image/new-file.js";
import type { StoreAbilities } from "../s3/abilities.js";
import type { AskOptions } from "../s3/asker.js";
import type { RecordFolder } from "./record-folder.js";

/**
 * The right to write in a domain's folder of an object store, which one process has at a time: its lease.
 * Objects there are made, replaced and removed, and never changed.
 *
 * A point is being made as long as there is a note of it, `.ID.partial`, and no manifest:
 *
 *     note made -> files made -> manifest made: the point exists -> note removed
 *
 * A note without a manifest is a dead run's, if somebody else has the lease. The files of its point are
 * removed, and the note last; so is a manifest without other files, which such a run put afterwards. Without
 * a note nothing is ever removed, whoever has put it there: a run that finds its note gone has lost the
 * lease, and makes another, so that the next holder looks.
 *
 * A point is removed the other way round: note made -> manifest removed -> files removed -> note removed.
 */
export interface StoreWriting {
  /** Aborted when the lease was lost; nothing is committed then. */
  readonly lost: AbortSignal;
  /**
   * Aborted then too, and some seconds after the signal of whoever has begun to write: what must not be left
   * half is done with it. What is not done by then is left to the next holder.
   */
  readonly over: AbortSignal;
  /** What the store does, as it was found when the lease was taken. */
  readonly abilities: StoreAbilities;
  /**
   * Whether images of a point can be replaced: where the store does not replace on condition, a manifest that
   * comes late from a process without the lease would take the place of the one that is right.
   */
  readonly canMerge: boolean;
  /** Asks the store. @throws {BackupError} `E_LEASE_LOST` */
  assertHeld(): Promise<void>;
  /** The small files beside the points, whose names begin with a dot. */
  readonly records: RecordFolder;
  /**
   * Removes the unfinished points of dead runs, with their uploads.
   * @param options.goOnWith ids of points that stay if a run had begun to make them
   */
  clearLeftovers(
    options?: AskOptions & { readonly goOnWith?: ReadonlySet<string> | undefined },
  ): Promise<void>;
  /**
   * Removes what was left of merges of a point, with or without a note of it: uploads, and files that its
   * manifest does not name. What is no point stays as it is.
   */
  clearPoint(id: string, options?: AskOptions): Promise<void>;
  /**
   * Begins a point.
   * @param id that no point has
   * @throws {PreconditionError} `E_FOREIGN_OBJECTS`: another program has put something there
   */
  begin(id: string, options?: StoredPointOptions): Promise<NewStoredPoint>;
  /**
   * Removes a point, its manifest first. If this process is killed, the next that writes there goes on with
   * it.
   */
  removePoint(id: string, options?: RemoveOptions): Promise<StoredRemoval>;
  /**
   * Begins to give disks of a point other images, made of those of several points, or of its own.
   * @param options.refuse as for `commit`, before anything is uploaded
   * @throws {BackupError} `E_LEASE_LOST`
   */
  merge(
    id: string,
    options?: AskOptions & { readonly refuse?: MergedManifests["refuse"] },
  ): Promise<StoredMerge>;
  /**
   * Replaces the manifest of a point in one step.
   * @param change makes its text from that of the one that is there, which has this ETag
   * @throws {BackupError} `E_LEASE_LOST`
   */
  rewrite(id: string, change: (text: string, etag: string) => string): Promise<void>;
  release(): Promise<void>;
}

/** Where the bytes of a file of a point are. */
interface StoredRange {
  readonly point: string;
  readonly file: string;
  /** In bytes, as the length. */
  readonly start: number;
  readonly length: number;
}

/**
 * What a file is made of, as `AssemblyOptions` has it: bytes that are written, and ranges that are copied.
 */
export interface StoredParts {
  readonly headBytes: number;
  readonly ranges: readonly StoredRange[];
  readonly tailPartBytes: number;
}

/** Bytes of a file that are not what they have to be. */
export interface StoredPatch {
  /** Where they are in the file, in bytes, as the length. */
  readonly position: number;
  readonly length: number;
  /** What belongs there; undefined: what is there stays. It may be asked for more than once. */
  readonly read: () => Promise<Uint8Array | undefined>;
}

/**
 * A point that gets other images in place of its own. Whenever this ends, its manifest names files that are
 * there and belong together:
 *
 *     new images uploaded, no objects yet -> the note says that it is replaced -> the old ones copied aside
 *       -> the manifest names those
 *       -> the new images take the names of the old -> the manifest describes them -> what lies aside is removed
 *
 * What a killed run has left is undone by the next one that writes there.
 */
export interface StoredMerge {
  /** How a file is called while it lies aside; or one that is added. */
  nameOf(name: string): string;
  /** The image that takes the place of a file of the point. `finish` uploads the rest of it. */
  replace(name: string, parts: StoredParts): Promise<NewFile>;
  /**
   * Uploads the image that takes the place of a file of the point, and differs from it by patches. The store
   * copies what has none nearby.
   */
  patch(name: string, patches: readonly StoredPatch[]): Promise<void>;
  /** A file that the point gets in addition. @param name as `nameOf` gives it */
  add(name: string): RemoteNewFile;
  /**
   * Puts the new images in place.
   * @returns what stays of the old ones in a bucket that keeps versions
   * @throws {BackupError} `E_LEASE_LOST`; what `prove` throws: the point is as before then
   * @throws the signal's reason, if it fires before the manifest has changed, or some seconds have passed since
   */
  commit(manifests: MergedManifests): Promise<KeptVersion[]>;
  /** Undoes all of it that was not committed. Without the lease that is left to its next holder. */
  discard(): Promise<void>;
}

export interface MergedManifests {
  /**
   * The manifest that names the files that lie aside, made from the one that is there. If this throws, or
   * `merged`, the point stays as it is.
   */
  readonly aside: (text: string) => string;
  /** The one that describes the new images, made from the one that was there before the merge. */
  readonly merged: (text: string) => string;
  /**
   * Compares the new images with what they must be, when they have their names and nothing counts on them.
   */
  readonly prove: () => Promise<void>;
  /** Files that the merged manifest names no more. */
  readonly stale: readonly string[];
  /**
   * Gets the points of the domain with the names of their records, when it is noted that images are replaced,
   * and before any is. If it throws, the point stays as it is.
   */
  readonly refuse: (records: readonly { readonly point: string; readonly name: string }[]) => void;
  /** @internal tests end the process at each step */
  readonly onStep?: ((step: string) => void) | undefined;
}

/** What a manifest says of files that a merge has moved. */
export interface MergeState {
  /**
   * The manifest that names the files as they were called before the merge. Another text each time.
   * @throws {DamageError} `E_MANIFEST`: what this program knows nothing of is too deep or too long in it
   */
  readonly text: () => string;
  /** The files that lie aside, and their names in `text`. */
  readonly aside: readonly { readonly from: string; readonly to: string }[];
  /** Files that `text` names. */
  readonly named: readonly string[];
  /** Names of which there may be others that a merge has made (`nameOf`). */
  readonly families: readonly string[];
}

export interface RemoveOptions extends AskOptions {
  /**
   * Gets the names of the point's files when it is noted that it goes, and before anything is removed. If it
   * throws, the point stays.
   */
  readonly refuse?: ((names: readonly string[]) => void) | undefined;
}

/** What was removed. */
export interface StoredRemoval {
  readonly bytes: number;
  /** Set if the bucket keeps versions: then all of it is there still, as old ones. */
  readonly versions: KeptVersion | undefined;
}

/** What runs have left of a point in an object store, or have just begun. */
export interface StoredLeftovers {
  readonly id: string;
  /** How many objects no manifest names, or lie aside. */
  readonly objects: number;
  /** How many uploads were begun and not completed. */
  readonly uploads: number;
  /**
   * Whether a note tells of it: then a run is under way, or the next that writes there clears it away. Without
   * one nobody looks.
   */
  readonly isNoted: boolean;
}

/** A version that stays when its object is removed. */
export interface KeptVersion {
  /** By object lock; undefined: nothing holds it. */
  readonly lockedUntil: Date | undefined;
  /** Whether it has a legal hold, which has no end. */
  readonly isHeld: boolean;
}

export interface StoredPointOptions extends AskOptions {
  /**
   * How many images are made side by side, of this point and of others; default 1. They share the memory: one
   * takes 48 MiB and two 80, and more than two take 24 MiB each. A digest file beside each takes 8. So the caller
   * makes no more than `pointsAtOnce` says at a time.
   */
  readonly imagesAtOnce?: number | undefined;
  /** Whether each digest file is made beside its image; default: one file is made after the other. */
  readonly digestsBeside?: boolean | undefined;
  /**
   * Goes on with what a killed run has left of this point, if the same files are made of the same bytes. What
   * this one has made of it stays, too: `clearLeftovers` removes it.
   */
  readonly goOn?: boolean | undefined;
}

/** A point that is being made in an object store. */
export interface NewStoredPoint {
  /** A file of it. It appears when it is finished. */
  at(name: string): RemoteNewFile;
  /** Puts a small file. */
  create(name: string, content: Uint8Array): Promise<void>;
  /**
   * Puts the file that makes it a point, unless there is one.
   * @throws {BackupError} `E_LEASE_LOST`: others may have the lease. Whoever has it next keeps the point if
   *   its files are there, and otherwise removes it
   */
  publish(name: string, text: string): Promise<void>;
  /**
   * Removes everything of it, unless it was published, or the next run goes on with it (`goOn`). Without the
   * lease that is left to its next holder.
   */
  discard(): Promise<void>;
}
