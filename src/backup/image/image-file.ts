import assert from "node:assert/strict";
import {
  close,
  closeSync,
  constants,
  fdatasync,
  fstat,
  fsync,
  ftruncate,
  ftruncateSync,
  open,
  read,
  readSync,
  unlink,
  write,
  writeSync,
} from "node:fs";
import { promisify } from "node:util";
import { BackupError, DamageError, hasCode, UsageError } from "../base/errors.js";
import { shownPath } from "../host/plain-files.js";
import { fillFrom } from "./fill-file.js";

const opened = promisify(open);
const status = promisify(fstat);
const removed = promisify(unlink);

export interface ReadOptions {
  /**
   * Read and decompress on the calling thread, which waits meanwhile. This is for threads that do nothing
   * else, since libuv has four threads for the whole process.
   */
  readonly blocking?: boolean | undefined;
  /** Ends reads of a file that is elsewhere. Those of this machine's files are not waited for so long. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Called before each change of a file that others may take over. Throws if the right to change it was lost.
 */
export type Guard = () => Promise<void>;

/** Images hold guests' data, so other users get no access. */
const NEW_FILE_MODE = 0o600;

/**
 * A regular file or a block device that is read and written at positions; all offsets and lengths are bytes.
 *
 * Transfers use the callback functions on the bare descriptor: for a pull, promises of a `FileHandle` were
 * measured to be a sixth slower. The system reuses the number of a closed descriptor for the next file that
 * is opened. So `close` waits for pending transfers: a late write for a failed image must not land in another
 * file.
 */
export class ImageFile {
  readonly path: string;
  readonly #descriptor: number;
  readonly #blocking: boolean;
  /** The end of a file that is being written, as {@link writeNow} and the other methods have extended it. */
  #end = 0;
  #guard: Guard | undefined;
  #transfers = 0;
  #whenIdle: (() => void) | undefined;
  #closed: Promise<void> | undefined;

  private constructor(path: string, descriptor: number, blocking = false) {
    this.path = shownPath(path);
    this.#descriptor = descriptor;
    this.#blocking = blocking;
  }

  /** @throws the file system's error: EEXIST if `path` exists already */
  static async create(path: string): Promise<ImageFile> {
    const flags = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL;
    return new ImageFile(path, await opened(path, flags, NEW_FILE_MODE));
  }

  /**
   * A link at the end of the path is not followed.
   * @throws {DamageError} for anything but a regular file
   */
  static async open(path: string, { blocking }: ReadOptions = {}): Promise<ImageFile> {
    const file = new ImageFile(path, await openUnfollowed(path, constants.O_RDONLY), blocking);
    const stats = await status(file.#descriptor);
    if (stats.isFile()) return file;
    await file.close();
    throw unsuitable(file.path, "is not a regular file");
  }

  /**
   * Opens an existing file for changes. A link at the end of the path is not followed.
   * @throws {DamageError} for anything but a regular file, and for one that has other names too: whoever
   *   gave it to them may have no right to change it
   * @throws the file system's error
   */
  static async openForWriting(path: string, guard?: Guard): Promise<ImageFile> {
    const file = new ImageFile(path, await openUnfollowed(path, constants.O_RDWR));
    const stats = await status(file.#descriptor);
    if (stats.isFile() && stats.nlink <= 1) {
      file.#guard = guard;
      file.#end = stats.size;
      return file;
    }
    await file.close();
    if (!stats.isFile()) throw unsuitable(file.path, "is not a regular file");
    const what = `has ${stats.nlink} names (hard links), and a change would show in all of them: copy the file and put the copy in its place`;
    throw unsuitable(file.path, what);
  }

  /**
   * Opens a block device to be written in place.
   * @throws the file system's error: EBUSY if the system itself uses the device (mounted, swap, part of a
   * volume)
   */
  static async openDevice(path: string): Promise<ImageFile> {
    const file = new ImageFile(path, await opened(path, constants.O_RDWR | constants.O_EXCL));
    if ((await status(file.#descriptor)).isBlockDevice()) return file;
    await file.close();
    throw new UsageError("E_TARGET", `${path} is no longer a block device`, { details: { path } });
  }

  async size(): Promise<number> {
    return (await status(this.#descriptor)).size;
  }

  /**
   * Fills `target` from `position`, up to the end of the file.
   * @returns bytes read
   */
  async read(target: Uint8Array, position: number): Promise<number> {
    if (this.#blocking) return this.#readNow(target, position);
    return await this.#transfer("reading", target.length, position, (done, callback) =>
      read(this.#descriptor, target, done, target.length - done, position + done, callback),
    );
  }

  /**
   * Fills all of `target` from `position`. Bytes at or after `end` become zeroes.
   * @throws {DamageError} the file ends before `end`
   */
  async fill(target: Uint8Array, position: number, end: number): Promise<void> {
    await fillFrom(this, target, position, end);
  }

  /** Writes all of `data`, which must stay unchanged until the promise settles. */
  async write(data: Uint8Array, position: number): Promise<void> {
    if (this.#guard) await this.#guard();
    this.#end = Math.max(this.#end, position + data.length);
    await this.#transfer("writing", data.length, position, (done, callback) =>
      write(this.#descriptor, data, done, data.length - done, position + done, callback),
    );
  }

  /** Writes all of `data` before it returns. */
  writeNow(data: Uint8Array, position: number): void {
    if (this.#closed !== undefined) assert.fail("the file is closed");
    this.#end = Math.max(this.#end, position + data.length);
    for (let done = 0; done < data.length; ) {
      // Without an offset and a length Node has less to look at.
      const rest = done === 0 ? data : data.subarray(done);
      try {
        done += writeSync(this.#descriptor, rest, undefined, undefined, position + done);
      } catch (error) {
        throw this.#failure(`writing byte ${position + done} of`, error as NodeJS.ErrnoException);
      }
    }
  }

  /** Extends the file to at least `end` bytes. */
  reach(end: number): void {
    assert(this.#closed === undefined, "the file is closed");
    if (end <= this.#end) return;
    try {
      ftruncateSync(this.#descriptor, end);
    } catch (error) {
      throw this.#failure("resizing", error as NodeJS.ErrnoException);
    }
    this.#end = end;
  }

  async truncate(length: number): Promise<void> {
    if (this.#guard) await this.#guard();
    this.#end = length;
    await this.#change("resizing", (callback) => ftruncate(this.#descriptor, length, callback));
  }

  /** Flushes data and length to stable storage. */
  datasync(): Promise<void> {
    return this.#change("flushing", (callback) => fdatasync(this.#descriptor, callback));
  }

  /** Flushes data and all of the file's attributes to stable storage. */
  sync(): Promise<void> {
    return this.#change("flushing", (callback) => fsync(this.#descriptor, callback));
  }

  /** More may be written at any time. */
  async capacity(): Promise<void> {}

  /** Flushes the file, with `sync`. */
  async finish(options: { readonly sync: boolean }): Promise<void> {
    if (options.sync) await this.sync();
  }

  /** May be called more than once. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  /** Closes a file that was just made at `path`, and removes it. */
  async discard(path: string): Promise<void> {
    await this.close();
    await removed(path);
  }

  async #close(): Promise<void> {
    if (this.#transfers > 0) {
      await new Promise<void>((resolve) => {
        this.#whenIdle = resolve;
      });
    }
    // If the thread ended meanwhile, an asynchronous close that still waits would not happen.
    if (this.#blocking) closeSync(this.#descriptor);
    else await this.#change("closing", (callback) => close(this.#descriptor, callback));
  }

  /**
   * Repeats `step` until `length` bytes are transferred or a step transfers none, as a read does at the end.
   */
  #transfer(
    action: string,
    length: number,
    position: number,
    step: (done: number, callback: (error: NodeJS.ErrnoException | null, bytes: number) => void) => void,
  ): Promise<number> {
    this.#transfers += 1;
    return new Promise<number>((resolve, reject) => {
      const next = (done: number): void => {
        step(done, (error, bytes) => {
          if (!error && bytes > 0 && done + bytes < length) return next(done + bytes);
          this.#transferEnded();
          if (error) reject(this.#failure(`${action} byte ${position + done} of`, error));
          else resolve(done + bytes);
        });
      };
      next(0);
    });
  }

  #readNow(target: Uint8Array, position: number): number {
    assert(this.#closed === undefined, "the file is closed");
    for (let done = 0; done < target.length; ) {
      try {
        const bytes = readSync(this.#descriptor, target, done, target.length - done, position + done);
        if (bytes === 0) return done;
        done += bytes;
      } catch (error) {
        throw this.#failure(`reading byte ${position + done} of`, error as NodeJS.ErrnoException);
      }
    }
    return target.length;
  }

  #transferEnded(): void {
    this.#transfers -= 1;
    if (this.#transfers === 0) this.#whenIdle?.();
  }

  #change(
    action: string,
    start: (callback: (error: NodeJS.ErrnoException | null) => void) => void,
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      start((error) => (error ? reject(this.#failure(action, error)) : resolve()));
    });
  }

  /**
   * Keeps the system's code (ENOSPC, EIO) and adds the file's path, which errors of bare descriptors lack.
   */
  #failure(action: string, error: NodeJS.ErrnoException): BackupError {
    return new BackupError(error.code ?? "EIO", `${action} ${this.path} failed: ${error.message}`, {
      cause: error,
      details: { path: this.path },
    });
  }
}

/** Without O_NONBLOCK, opening a FIFO would wait for its other end. */
async function openUnfollowed(path: string, flags: number): Promise<number> {
  try {
    return await opened(path, flags | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    if (hasCode(error, "ELOOP")) throw unsuitable(shownPath(path), "is a symbolic link", error);
    if (hasCode(error, "ENXIO")) throw unsuitable(shownPath(path), "is not a regular file", error);
    if (error instanceof Error) error.message = error.message.replaceAll(path, shownPath(path));
    throw error;
  }
}

function unsuitable(path: string, what: string, cause?: unknown): DamageError {
  return new DamageError("E_IMAGE_FILE", `${path} ${what}`, { cause, details: { path } });
}

/** Appended bytes are collected into writes of this size. */
const APPEND_BYTES = 1024 * 1024;

/** Writes a part of a file from front to back. */
export class Appender {
  readonly #file: Pick<ImageFile, "write">;
  readonly #buffer = Buffer.allocUnsafeSlow(APPEND_BYTES);
  #filled = 0;
  #written: number;

  constructor(file: Pick<ImageFile, "write">, position: number) {
    this.#file = file;
    this.#written = position;
  }

  /** Where the next byte goes. */
  get position(): number {
    return this.#written + this.#filled;
  }

  /** `bytes` may be used again as soon as the promise has settled. */
  async append(bytes: Uint8Array): Promise<void> {
    for (let taken = 0; taken < bytes.length; ) {
      const piece = bytes.subarray(taken, taken + APPEND_BYTES - this.#filled);
      this.#buffer.set(piece, this.#filled);
      this.#filled += piece.length;
      taken += piece.length;
      if (this.#filled === APPEND_BYTES) await this.flush();
    }
  }

  async flush(): Promise<void> {
    await this.#file.write(this.#buffer.subarray(0, this.#filled), this.#written);
    this.#written += this.#filled;
    this.#filled = 0;
  }
}
