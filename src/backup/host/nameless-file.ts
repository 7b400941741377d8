import { randomBytes } from "node:crypto";
import { constants } from "node:fs";
import { type FileHandle, mkdir, open, unlink } from "node:fs/promises";
import { join } from "node:path";
import { hasCode } from "../base/errors.js";

const FLAGS = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;

/**
 * A file that loses its name as soon as it is made: nobody else can open it, and its room is free when this
 * process ends, however it does. Only a process that is killed just between the two leaves it, empty.
 */
export class NamelessFile implements AsyncDisposable {
  readonly #file: FileHandle;

  private constructor(file: FileHandle) {
    this.#file = file;
  }

  /**
   * @param folder is made if it is missing, for this user alone
   * @param prefix of the name that it has for a moment
   * @throws the file system's error
   */
  static async create(folder: string, prefix: string): Promise<NamelessFile> {
    await mkdir(folder, { mode: 0o700 }).catch((error: unknown) => {
      if (!hasCode(error, "EEXIST")) throw error;
    });
    const path = join(folder, `${prefix}${randomBytes(12).toString("hex")}`);
    const file = await open(path, FLAGS, 0o600);
    try {
      await unlink(path);
      return new NamelessFile(file);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** Fills `target` from byte `position`. @returns whether there were so many bytes */
  async fill(target: Uint8Array, position: number): Promise<boolean> {
    for (let done = 0; done < target.length; ) {
      const { bytesRead } = await this.#file.read(target, done, target.length - done, position + done);
      if (bytesRead === 0) return false;
      done += bytesRead;
    }
    return true;
  }

  /** Writes all of `bytes`, which must stay unchanged until the promise settles. */
  async write(bytes: Uint8Array, position: number): Promise<void> {
    for (let done = 0; done < bytes.length; ) {
      done += (await this.#file.write(bytes, done, bytes.length - done, position + done)).bytesWritten;
    }
  }

  /** Gives back the room of all its bytes. */
  async empty(): Promise<void> {
    await this.#file.truncate(0);
  }

  async close(): Promise<void> {
    await this.#file.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
