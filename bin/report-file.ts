import { randomBytes } from "node:crypto";
import { constants } from "node:fs";
import { access, open } from "node:fs/promises";
import { basename, dirname, resolve } from "node:path";
import { hasCode, messageOf, UsageError } from "../src/backup/base/errors.js";
import { shellWord } from "../src/backup/base/shell-word.js";
import { HeldFolder } from "../src/backup/host/held-folder.js";
import { openPlain } from "../src/backup/host/plain-files.js";
import { PAGE_START } from "./report-page/page-start.js";

/** The page of a report, which replaces an older one and nothing else. */
export class ReportFile {
  readonly #path: string;

  private constructor(path: string) {
    this.#path = path;
  }

  /**
   * Call this before the repositories are read.
   * @throws {UsageError} `E_REPORT_FILE`: the folder doesn't exist or isn't writable, or there is something
   *   at `path` that is no report
   */
  static async at(path: string): Promise<ReportFile> {
    const file = new ReportFile(resolve(path));
    try {
      await access(dirname(file.#path), constants.W_OK);
      await using folder = await HeldFolder.open(dirname(file.#path));
      await file.#modeOf(folder);
    } catch (cause) {
      if (cause instanceof UsageError) throw cause;
      const message = `no report can be written to ${path}: ${messageOf(cause)}. Name a file in a folder that is there, or make the folder: mkdir -p ${shellWord(dirname(file.#path))}`;
      throw new UsageError("E_REPORT_FILE", message, { cause, details: { path } });
    }
    return file;
  }

  /**
   * Replaces the page in one step: a reader sees either the old or the new one.
   * @throws {UsageError} `E_REPORT_FILE`: something else is there meanwhile; the file system's error
   */
  async replace(page: string): Promise<void> {
    await using folder = await HeldFolder.open(dirname(this.#path));
    const name = basename(this.#path);
    const mode = await this.#modeOf(folder);
    const temporary = `.${name}.${randomBytes(8).toString("hex")}`;
    await removeLeft(folder, name);
    let made = false;
    try {
      // Others may write to the folder: a link or a file that waits at this name is no place to write to.
      await using file = await open(folder.at(temporary), "wx", 0o666);
      made = true;
      await file.writeFile(page);
      if (mode !== undefined) await file.chmod(mode);
      await folder.rename(temporary, name);
      made = false;
    } finally {
      if (made) await folder.unlink(temporary);
    }
  }

  /** The rights of the report that is there; undefined if there is none. */
  async #modeOf(folder: HeldFolder): Promise<number | undefined> {
    try {
      await using file = await openPlain(folder.at(basename(this.#path)));
      const { size, mode } = await file.stat();
      const start = Buffer.alloc(PAGE_START.length);
      const { bytesRead } = await file.read(start, 0, start.length, 0);
      const isReport = start.toString("utf8", 0, bytesRead) === PAGE_START;
      if (size === 0 || isReport) return mode & 0o777;
    } catch (error) {
      if (hasCode(error, "ENOENT")) return undefined;
      if (!hasCode(error, "ELOOP") && !hasCode(error, "ENXIO") && !hasCode(error, "EISDIR")) throw error;
    }
    const message = `${this.#path} is there already, and is no report of nbdpull's: name another file, or remove it`;
    throw new UsageError("E_REPORT_FILE", message, { details: { path: this.#path } });
  }
}

/** Longer than any report takes to be written. */
const LEFT_AFTER_MS = 3600 * 1000;

/** Removes the pages that runs have begun which were killed; another run may be writing its own just now. */
async function removeLeft(folder: HeldFolder, name: string): Promise<void> {
  for (const each of await folder.names()) {
    const isOurs = each.startsWith(`.${name}.`) && /^[0-9a-f]{16}$/.test(each.slice(name.length + 2));
    if (!isOurs) continue;
    const found = await folder.find(each);
    if (found?.isFile() && Date.now() - found.mtimeMs > LEFT_AFTER_MS) await folder.unlink(each);
  }
}
