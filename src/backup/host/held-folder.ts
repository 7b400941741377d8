import { constants, type Dirent, readlinkSync, type Stats } from "node:fs";
import {
  access,
  type FileHandle,
  link,
  lstat,
  mkdir,
  open,
  readdir,
  rename,
  rmdir,
  stat,
  unlink,
} from "node:fs/promises";
import { join } from "node:path";
import { DamageError, hasCode, PreconditionError } from "../base/errors.js";
import { isMissing, syncFile } from "./durable-files.js";
import { openPlain, PRIVATE_FILE } from "./plain-files.js";

/** Read and written by its owner only. */
const PRIVATE_FOLDER = 0o700;
const SETGID = 0o2000;
/** How deep folders are removed at a time: each level keeps a descriptor open. */
const MOST_LEVELS = 32;

/**
 * A folder that is kept open while it is used. Others may write to it, so its path is used only once: what is
 * in it is opened below the descriptor, as `openat` does, one name at a time and without following links. If
 * somebody puts a link in the folder's place meanwhile, nothing is read or written where that link leads.
 */
export class HeldFolder implements AsyncDisposable {
  /** For messages. */
  readonly path: string;
  /** A folder can be renamed, so it gets its name when everything in it is complete. */
  readonly foldersAppearWhole = true;
  readonly #handle: FileHandle;
  /** The rights that the group gets to what is made here: bits of a mode. */
  readonly #group: number;

  private constructor(path: string, handle: FileHandle, group: number) {
    this.path = path;
    this.#handle = handle;
    this.#group = group;
  }

  /**
   * Opens a folder that the user has named. Links are followed, because the user trusts them. What is made in
   * it is for its owner only. If the folder has the setgid bit, its group gets the rights that it has here.
   * @throws {PreconditionError} `E_NO_PROC`: `/proc` is not mounted
   * @throws the file system's error: ENOENT, ENOTDIR
   */
  static async open(path: string): Promise<HeldFolder> {
    const handle = await open(path, constants.O_RDONLY | constants.O_DIRECTORY);
    const held = await handle.stat();
    const folder = new HeldFolder(path, handle, (held.mode & SETGID) === 0 ? 0 : held.mode & 0o070);
    const reached = await stat(folder.reach).catch(() => undefined);
    if (reached && isSameFile(held, reached)) return folder;
    await folder.close();
    const message = `${path} cannot be read safely, because /proc/self/fd is missing: mount /proc`;
    throw new PreconditionError("E_NO_PROC", message, { details: { path } });
  }

  /** A path to the folder that stays right when the folder is renamed. It ends with `close`. */
  get reach(): string {
    return `/proc/self/fd/${this.#handle.fd}`;
  }

  /** Its path without links. */
  get realPath(): string {
    return readlinkSync(this.reach);
  }

  /** @throws the file system's error if this user may not write to it: EACCES, EROFS */
  async assertWritable(): Promise<void> {
    await access(this.reach, constants.W_OK).catch(this.#fail);
  }

  /**
   * A path of something in this folder, for code that opens files by path. It ends with `close`. Whoever
   * opens it must not follow a link at its end.
   * @throws {RangeError} `name` is a path
   */
  at(name: string): string {
    if (name === "" || name === "." || name === ".." || /[/\0]/.test(name)) {
      throw new RangeError(`${JSON.stringify(name)} is not the name of a file`);
    }
    return `${this.reach}/${name}`;
  }

  /**
   * Opens a folder in this one.
   * @returns undefined if nothing has that name
   * @throws {DamageError} `E_LINK`: it is a symbolic link, or no folder
   */
  async folder(name: string): Promise<HeldFolder | undefined> {
    const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
    try {
      return new HeldFolder(join(this.path, name), await open(this.at(name), flags), this.#group);
    } catch (error) {
      if (isMissing(error)) return undefined;
      if (hasCode(error, "ELOOP") || hasCode(error, "ENOTDIR")) throw await this.#notAFolder(name, error);
      throw this.#named(error);
    }
  }

  /**
   * Creates a folder in this one.
   * @throws the file system's error: EEXIST
   */
  async makeFolder(name: string): Promise<void> {
    await mkdir(this.at(name), PRIVATE_FOLDER).catch(this.#fail);
    if (this.#group === 0) return;
    await using made = await this.folder(name);
    if (made) await made.#handle.chmod(PRIVATE_FOLDER | SETGID | this.#group);
  }

  /** Gives the group its rights to the files in this folder, which were made for their owner only. */
  async shareFiles(): Promise<void> {
    if (this.#group !== 0) await this.#chmodFiles(PRIVATE_FILE | (this.#group & 0o060));
  }

  /** The same for one file. What is no file of ours with one name only stays as it is. */
  async shareFile(name: string): Promise<void> {
    if (this.#group !== 0) await chmodOurs(this.at(name), PRIVATE_FILE | (this.#group & 0o060));
  }

  /** Leaves rights to this folder and its files to their owner only. */
  async makePrivate(): Promise<void> {
    await this.#chmodFiles(PRIVATE_FILE);
    await this.#handle.chmod(PRIVATE_FOLDER);
  }

  async #chmodFiles(mode: number): Promise<void> {
    for (const entry of await this.entries()) {
      if (entry.isFile()) await chmodOurs(this.at(entry.name), mode);
    }
  }

  /** What is in the folder. */
  async entries(): Promise<Dirent[]> {
    return await readdir(this.reach, { withFileTypes: true }).catch(this.#fail);
  }

  async names(): Promise<string[]> {
    return await readdir(this.reach).catch(this.#fail);
  }

  /** What has this name; undefined: nothing. A link is not followed. */
  async find(name: string): Promise<Stats | undefined> {
    return await lstat(this.at(name)).catch((error: unknown) => {
      if (isMissing(error)) return undefined;
      return this.#fail(error);
    });
  }

  /** The folder itself. */
  async status(): Promise<Stats> {
    return await this.#handle.stat();
  }

  /** Whether the name still leads to `folder`, which was opened by it. */
  async leadsTo(name: string, folder: HeldFolder): Promise<boolean> {
    const [found, held] = [await this.find(name), await folder.status()];
    return found !== undefined && isSameFile(found, held);
  }

  /**
   * The content of a regular file.
   * @param most bytes that it may have
   * @throws {DamageError} `E_LINK`: it is a link, a FIFO, a folder or the like, or it is longer
   * @throws the file system's error: ENOENT
   */
  async read(name: string, most: number): Promise<Buffer> {
    const refuse = (what: string, cause?: unknown): DamageError => {
      const path = join(this.path, name);
      return new DamageError("E_LINK", `${path} ${what}`, { cause, details: { path } });
    };
    try {
      await using file = await openPlain(this.at(name));
      const found = await file.stat();
      if (!found.isFile()) throw refuse("is not a regular file");
      if (found.size > most) throw refuse(`has ${found.size} bytes, and at most ${most} make sense`);
      const bytes = Buffer.alloc(found.size);
      let filled = 0;
      for (let read = -1; read !== 0 && filled < bytes.length; filled += read) {
        read = (await file.read(bytes, filled, bytes.length - filled, filled)).bytesRead;
      }
      return bytes.subarray(0, filled);
    } catch (error) {
      if (hasCode(error, "ELOOP")) throw refuse("is a symbolic link", error);
      if (hasCode(error, "ENXIO")) throw refuse("is not a regular file", error);
      throw this.#named(error);
    }
  }

  /**
   * Creates a file with this content.
   * @throws the file system's error: EEXIST
   */
  async create(name: string, content: string | Uint8Array, { sync }: { sync: boolean }): Promise<void> {
    try {
      await using file = await open(this.at(name), "wx", PRIVATE_FILE);
      await file.writeFile(content);
      if (this.#group !== 0) await file.chmod(PRIVATE_FILE | (this.#group & 0o060));
      if (sync) await file.sync();
    } catch (error) {
      throw this.#named(error);
    }
  }

  /** Creates a file, or replaces what has its name, at once. The content is on stable storage then. */
  async replace(
    name: string,
    content: string | Uint8Array,
    beforeRename?: () => Promise<void>,
  ): Promise<void> {
    const temporary = `.${name}.${unusedName()}`;
    try {
      await this.create(temporary, content, { sync: true });
      await beforeRename?.();
      await this.rename(temporary, name);
    } catch (error) {
      await this.unlink(temporary).catch(() => undefined);
      throw error;
    }
  }

  /**
   * Creates a file at once, with its content on stable storage, unless something has its name.
   * @returns whether it was created
   */
  async createWhole(name: string, content: string): Promise<boolean> {
    const temporary = `.${name}.${unusedName()}`;
    await this.create(temporary, content, { sync: true });
    try {
      // Unlike rename, link never replaces what another process may have made meanwhile.
      await link(this.at(temporary), this.at(name));
      return true;
    } catch (error) {
      if (hasCode(error, "EEXIST") || (await this.find(name))) return false;
      // A file system without hard links.
      await this.rename(temporary, name);
      return true;
    } finally {
      await this.unlink(temporary);
    }
  }

  /** Renames something in this folder, or moves it to another one. A link is moved as a link. */
  async rename(from: string, to: string, into: HeldFolder = this): Promise<void> {
    await rename(this.at(from), into.at(to)).catch(this.#fail);
  }

  /** Removes a file or a link; it may be missing. */
  async unlink(name: string): Promise<void> {
    await unlink(this.at(name)).catch((error: unknown) => {
      if (!isMissing(error)) this.#fail(error);
    });
  }

  /** Removes an empty folder. */
  async removeEmpty(name: string): Promise<void> {
    await rmdir(this.at(name)).catch(this.#fail);
  }

  /**
   * Removes whatever has this name, and all that is in it; nothing may have it. Links are removed, and what
   * they lead to stays. Folders that lie very deep in others are moved here first.
   */
  async remove(name: string): Promise<void> {
    const left = [name];
    for (let next = left.pop(); next !== undefined; next = left.pop()) {
      await this.#remove(next, { levels: MOST_LEVELS, top: this, deep: left });
    }
  }

  async #remove(
    name: string,
    { levels, top, deep }: { readonly levels: number; readonly top: HeldFolder; readonly deep: string[] },
  ): Promise<void> {
    const found = await this.find(name);
    if (!found) return;
    if (!found.isDirectory()) return await this.unlink(name);
    if (levels === 0) {
      const moved = `.dead-${unusedName()}`;
      await this.rename(name, moved, top);
      deep.push(moved);
      return;
    }
    {
      await using folder = await this.folder(name);
      if (!folder) return;
      const within = { levels: levels - 1, top, deep };
      for (const inside of await folder.names()) await folder.#remove(inside, within);
    }
    await rmdir(this.at(name)).catch((error: unknown) => {
      if (!isMissing(error)) this.#fail(error);
    });
  }

  /** Bytes that the files in this folder and its subfolders occupy on the file system. */
  async usedBytes(levels = MOST_LEVELS): Promise<number> {
    let bytes = 0;
    for (const entry of await this.entries()) {
      if (entry.isFile()) bytes += ((await this.find(entry.name))?.blocks ?? 0) * 512;
      if (!entry.isDirectory() || levels === 0) continue;
      await using folder = await this.folder(entry.name);
      bytes += (await folder?.usedBytes(levels - 1)) ?? 0;
    }
    return bytes;
  }

  /** Flushes the folder, so that the names in it are durable. */
  async sync(): Promise<void> {
    await syncFile(this.reach);
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #notAFolder(name: string, cause: unknown): Promise<DamageError> {
    const path = join(this.path, name);
    const isLink = (await this.find(name))?.isSymbolicLink() ?? false;
    const message = isLink
      ? `${path} is a symbolic link, and nothing in a repository may be one: move the folder itself there, or mount it there. Nothing was read or changed`
      : `${path} is no folder`;
    return new DamageError("E_LINK", message, { cause, details: { path } });
  }

  /** Throws the error, with the folder's path in place of its descriptor. */
  readonly #fail = (error: unknown): never => {
    throw this.#named(error);
  };

  #named(error: unknown): unknown {
    if (error instanceof Error) error.message = error.message.replaceAll(this.reach, this.path);
    return error;
  }
}

async function chmodOurs(path: string, mode: number): Promise<void> {
  await using file = await openPlain(path);
  const found = await file.stat();
  // A file with another name may lie elsewhere too, where others need it as it is.
  const isOurs = found.isFile() && found.nlink === 1 && found.uid === process.geteuid?.();
  if (isOurs) await file.chmod(mode);
}

function isSameFile(one: Stats, other: Stats): boolean {
  return one.dev === other.dev && one.ino === other.ino;
}

/** A name that nothing has. Cryptography is loaded here, since it takes a pull that needs none 3 ms. */
function unusedName(): string {
  return process.getBuiltinModule("node:crypto").randomUUID();
}
