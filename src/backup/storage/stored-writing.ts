import type { RemoteNewFile } from "../image/new-file.js";
import type { AskOptions } from "../s3/bucket.js";
import type { RecordFolder } from "./record-folder.js";

/**
 * The right to write in a domain's folder of an object store, which one process has at a time: its lease.
 * Objects there are made and removed, and never changed.
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
  release(): Promise<void>;
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

/** A version that stays when its object is removed. */
export interface KeptVersion {
  /** By object lock; undefined: nothing holds it. */
  readonly lockedUntil: Date | undefined;
  /** Whether it has a legal hold, which has no end. */
  readonly isHeld: boolean;
}

export interface StoredPointOptions extends AskOptions {
  /**
   * How many images are made side by side, each with its digest file. They share the memory. Default: one
   * file is made after the other.
   */
  readonly filesAtOnce?: number | undefined;
  /** Goes on with what a killed run has left of this point, if the same files are made of the same bytes. */
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
  /** Removes everything of it, unless it was published. Without the lease that is left to its next holder. */
  discard(): Promise<void>;
}
