import { randomBytes } from "node:crypto";
import { constants } from "node:fs";
import { access, open } from "node:fs/promises";
import { basename, dirname, resolve } from "node:path";
import { lock } from "proper-lockfile";
import { hasCode, UsageError } from "../src/backup/base/errors.js";
import { HeldFolder } from "../src/backup/host/held-folder.js";
import { lockFiles } from "../src/backup/host/lock-fs.js";
import { openPlain } from "../src/backup/host/plain-files.js";
import { type MetricsUpdate, updatedMetrics } from "./metrics.js";

/** More than the series of ten thousand domains take. */
const MOST_BYTES = 64 * 1024 ** 2;
const NOTHING: MetricsUpdate = { samples: [], otherwise: [] };

/** A metrics file, which other runs may write as well. */
export class MetricsFile {
  readonly #path: string;

  private constructor(path: string) {
    this.#path = path;
  }

  /**
   * Call this before a backup begins: it updates the file without new samples, so that everything that would
   * keep the backup's metrics from being written is found first.
   * @throws {UsageError} if the folder doesn't exist or isn't writable, if `path` is anything but a metrics
   * file of this program, or if another run holds the lock for too long
   */
  static async at(path: string): Promise<MetricsFile> {
    const file = new MetricsFile(resolve(path));
    try {
      // Checked first: `lock` would retry for seconds before it reported such a folder.
      await access(dirname(file.#path), constants.W_OK);
      await file.update(NOTHING);
    } catch (cause) {
      if (cause instanceof UsageError) throw cause;
      const reason = cause instanceof Error ? cause.message : String(cause);
      const next = hasCode(cause, "ENOENT") ? ". Is the node exporter installed, and the path right?" : "";
      const message = `no metrics can be written to ${path}: ${reason}${next}`;
      throw new UsageError("E_METRICS", message, { cause, details: { path } });
    }
    return file;
  }

  /** Replaces the file atomically: the collector sees either the old or the new one. */
  async update(update: MetricsUpdate): Promise<void> {
    // Held open, since others may write to it: what is in it is reached below the descriptor.
    await using folder = await HeldFolder.open(dirname(this.#path));
    const name = basename(this.#path);
    const { fs, stopRenewing } = lockFiles();
    const release = await lock(this.#path, {
      lockfilePath: folder.at(`${name}.lock`),
      realpath: false,
      fs,
      // The file is replaced in one step, so without the lock the worst is that another run's update is lost.
      onCompromised: () => undefined,
      retries: { retries: 30, minTimeout: 20, maxTimeout: 500 },
    });
    // The collector reads every file that ends in .prom.
    const temporary = `.${name}.${randomBytes(8).toString("hex")}`;
    let made = false;
    try {
      const text = updatedMetrics(await this.#read(folder.at(name)), update, this.#path);
      // Others may write to the folder: a link or a file that waits at this name is no place to write to.
      await using file = await open(folder.at(temporary), "wx", 0o600);
      made = true;
      await file.writeFile(text);
      // The collector runs as another user, so the mode must not depend on the umask.
      await file.chmod(0o644);
      await folder.rename(temporary, name);
      made = false;
    } finally {
      if (made) await folder.unlink(temporary);
      // Whoever may write to the folder can have removed the lock, or put something else there.
      stopRenewing();
      await release().catch(() => undefined);
    }
  }

  /** The file as it is, empty if there is none. Follows no link, and waits for nobody at a pipe. */
  async #read(path: string): Promise<string> {
    try {
      await using file = await openPlain(path);
      const found = await file.stat();
      if (found.isFile() && found.size <= MOST_BYTES) return await file.readFile("utf8");
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "ENOENT") return "";
      if (code !== "ELOOP" && code !== "ENXIO") throw error;
    }
    const message = `${this.#path} is no plain file of metrics: name another one, or remove it`;
    throw new UsageError("E_METRICS", message, { details: { path: this.#path } });
  }
}
