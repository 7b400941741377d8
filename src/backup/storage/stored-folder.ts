/**
 * The storage room knows what a repository lies in: a folder of this machine, or a prefix in an object store. Both
 * are read by one interface, `StoredFolder`, and whoever only reads points uses nothing else.
 *
 * A folder of this machine is a `HeldFolder` of the host room: what is in it is opened below its descriptor, one
 * name at a time, and no link is followed. Whoever changes points uses that class itself.
 */

import type { FilePlace } from "../image/readable-file.js";

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
}

/** A folder of a repository, to be read. Nothing that lies in it is trusted. */
export interface StoredFolder extends AsyncDisposable {
  /** For messages. */
  readonly path: string;
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
