import type { DigestAlgorithm } from "../digest/algorithms.js";
import type { DigestThreads } from "../digest/digest-threads.js";
import type { NewPlace } from "../image/new-file.js";
import type { Destination } from "./pull.js";

/** A new image that a pull fills, with a digest file if one is wanted. Its files belong to a `NewFiles`. */
export interface ImageStore extends Destination<unknown>, AsyncDisposable {
  /** Guest bytes that are stored, before any compression. */
  readonly dataBytes: number;
  /**
   * Writes the tables of the image and completes the digest file. With `sync`, both reach stable storage.
   * @throws the file system's error, with `code`
   */
  finish(options: { readonly sync: boolean }): Promise<FinishedStore>;
}

/** How far an image is that an earlier run began. */
export interface Begun {
  /** The guest cluster at which the rest of the disk begins. */
  readonly cluster: number;
  /** The number of clusters that are set aside for storing before it. */
  readonly rank: number;
}

export interface FinishedStore {
  /** Guest data in the file, in bytes. A compressed cluster counts with the length of its stream. */
  readonly storedBytes: number;
  /** SHA-256 of the digest file in hexadecimal; undefined if there is none. */
  readonly digestsSha256: string | undefined;
}

/** A digest file to be created. */
export interface DigestTarget {
  readonly path: NewPlace;
  readonly algorithm: DigestAlgorithm;
  /**
   * Threads that the disks of a point share; default: threads for this image alone. Compressed images don't
   * use them.
   * @internal
   */
  readonly threads?: DigestThreads | undefined;
}
