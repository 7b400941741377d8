import type { DigestAlgorithm } from "../digest/digest.js";
import type { DigestThreads } from "../digest/digest-threads.js";
import type { Destination } from "./pull.js";

/** A new image, and its digest file where one is wanted, that a pull fills. Its files belong to a `NewFiles`. */
export interface ImageStore extends Destination<unknown>, AsyncDisposable {
  /** Bytes of the guest that are stored, before any compression. */
  readonly dataBytes: number;
  /**
   * Makes the file an image, and ends the digest file.
   * @throws the file system's error, with `code`
   */
  finish(options: { readonly sync: boolean }): Promise<FinishedStore>;
}

export interface FinishedStore {
  /** Bytes of guest data in the file, as stored: of a compressed cluster the length of its stream. */
  readonly storedBytes: number;
  /** Of the digest file, in hexadecimal digits; undefined where there is none. */
  readonly digestsSha256: string | undefined;
}

/** A digest file to be made. */
export interface DigestTarget {
  readonly path: string;
  readonly algorithm: DigestAlgorithm;
  /**
   * The disks of a point share theirs; left out: threads for this image alone.
   * @internal
   */
  readonly threads?: DigestThreads | undefined;
}
