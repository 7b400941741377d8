import { constants } from "node:fs";
import { access, chmod, readFile, rename, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { lock } from "proper-lockfile";
import { UsageError } from "../src/backup/base/errors.js";
import { type MetricsUpdate, updatedMetrics } from "./metrics.js";

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
      const message = `no metrics can be written to ${path}: ${reason}`;
      throw new UsageError("E_METRICS", message, { cause, details: { path } });
    }
    return file;
  }

  /** Replaces the file atomically: the collector sees either the old or the new one. */
  async update(update: MetricsUpdate): Promise<void> {
    const release = await lock(this.#path, {
      lockfilePath: `${this.#path}.lock`,
      realpath: false,
      retries: { retries: 30, minTimeout: 20, maxTimeout: 500 },
    });
    // The collector reads every file that ends in .prom.
    const temporary = join(dirname(this.#path), `.${basename(this.#path)}.${process.pid}`);
    try {
      await writeFile(temporary, updatedMetrics(await this.#text(), update, this.#path));
      // The collector runs as another user, so the mode must not depend on the umask.
      await chmod(temporary, 0o644);
      await rename(temporary, this.#path);
    } finally {
      await rm(temporary, { force: true });
      await release();
    }
  }

  async #text(): Promise<string> {
    return await readFile(this.#path, "utf8").catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return "";
      throw error;
    });
  }
}
