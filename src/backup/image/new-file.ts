import { ImageFile } from "./image-file.js";

/** A file that is being made. It is nothing to anybody before `finish`. */
export interface NewFile {
  /** For messages. */
  readonly path: string;
  /**
   * Bytes at its front that a killed run has left there, as it seems. Write them again: nothing is sent of
   * what is the same.
   */
  readonly leftBytes?: number | undefined;
  /** Writes all of `data`, which must stay unchanged until the promise settles. */
  write(data: Uint8Array, position: number): Promise<void>;
  /**
   * Takes all of `data` before it returns. Wait for `capacity` before more than some MiB.
   * @throws {RangeError} elsewhere than on this machine: the place lies far before what was written last
   */
  writeNow(data: Uint8Array, position: number): void;
  /**
   * Waits until more may be written.
   * @throws the first failure of a write that was taken
   */
  capacity(): Promise<void>;
  /**
   * Gives it this length: what was not written before it is zeroes, and what was written behind it is gone.
   */
  truncate(length: number): Promise<void>;
  /** On this machine: flushes what was written to stable storage. */
  datasync(): Promise<void>;
  sync(): Promise<void>;
  /** Makes the file whole, after everything was written; with `sync`, on stable storage. */
  finish(options: { readonly sync: boolean }): Promise<void>;
  /** A file that was not finished may be gone then. */
  close(): Promise<void>;
}

/** A file that will lie elsewhere than on this machine. */
export interface RemoteNewFile {
  readonly path: string;
  /** @param options as `CreateOptions` */
  create(options: CreateOptions): Promise<NewFile>;
  /**
   * Whether a killed run may have made it.
   * @param bytes that it has to have
   * @returns what the same bytes are given to; undefined: it has to be created
   * @internal
   */
  leftWhole?(bytes: number): LeftWhole | undefined;
}

/** A file that a killed run has made, to be compared with what it has to be. */
export interface LeftWhole {
  /** The next bytes, from front to back. */
  update(bytes: Uint8Array): void;
  /** Whether the file has these bytes and no others. If so, it stays; otherwise create it anew. */
  isSame(): boolean;
}

export interface CreateOptions {
  /** At most so many bytes are expected. */
  readonly mostBytes: number;
  /** Whether it is written from front to back; otherwise its first bytes may be written again at the end. */
  readonly inOrder: boolean;
}

/** Where a file is made: a path of this machine, or elsewhere. */
export type NewPlace = string | RemoteNewFile;

/** @throws the file system's error: EEXIST if there is such a file */
export async function createAt(place: NewPlace, options: CreateOptions): Promise<NewFile> {
  return typeof place === "string" ? await ImageFile.create(place) : await place.create(options);
}
