import { basename, dirname, resolve } from "node:path";
import { BackupError, DamageError, messageOf, UsageError } from "../base/errors.js";
import { syncFile } from "../host/durable-files.js";
import { HeldFolder } from "../host/held-folder.js";
import { NewFiles } from "../host/new-files.js";
import { type Finished, publish, refuseTarget, temporaryPathFor } from "../host/publish.js";
import { copyFrom } from "../image/readable-file.js";
import { damageOf } from "../repository/kept-files.js";
import type { KeptFile, Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import { refuseInside } from "./restore.js";

/** A kept file of a point, and the path to which it is restored. */
export interface FileTarget {
  readonly file: KeptFile;
  readonly path: string;
  /** @internal Where it is made; default: beside `path`, as no other file is called. */
  readonly temporary?: string | undefined;
}

export interface RestoredFilesOptions {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  readonly point: Manifest;
  readonly targets: readonly FileTarget[];
  /** Replace files that exist at the targets' paths. */
  readonly force: boolean;
  /** Flush to stable storage. */
  readonly sync: boolean;
  /** @internal The command's options that need these files, for messages: `--define`. Default: none. */
  readonly asked?: readonly string[] | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * The restored files that a domain needs to start, beside its disks: NVRAM, kernel and the like. `stage`
 * copies and checks them under temporary names before the disks are restored, and `publish` gives them their
 * final names afterwards. Disposal removes the files that were not published.
 */
export class RestoredFiles implements AsyncDisposable {
  readonly #options: RestoredFilesOptions;
  readonly #files = new NewFiles();
  readonly #finished: Finished[] = [];

  private constructor(options: RestoredFilesOptions) {
    this.#options = options;
  }

  /**
   * Copies the files under temporary names.
   * @throws {DamageError} a file is not what was stored
   * @throws {UsageError} a target exists, lies in the repository, or is given twice
   * @throws {PreconditionError} `E_TARGET_IN_USE`: a QEMU has a target open for writing
   * @throws the file system's error; the signal's reason
   */
  static async stage(options: RestoredFilesOptions): Promise<RestoredFiles> {
    const staged = new RestoredFiles(options);
    try {
      for (const target of options.targets) await staged.#stage(target);
    } catch (error) {
      await staged[Symbol.asyncDispose]();
      throw error;
    }
    return staged;
  }

  get targets(): readonly FileTarget[] {
    return this.#options.targets;
  }

  /** @internal What gets its name by `publish`. */
  get finished(): readonly Finished[] {
    return this.#finished;
  }

  /** @throws {BackupError} `E_BOOT_FILES`: the files can't get their final names; the restored disks stay */
  async publish(): Promise<void> {
    try {
      await publish(this.#finished, this.#options);
      this.#files.keep();
    } catch (cause) {
      const paths = this.#finished.map(({ final }) => final);
      const reason = messageOf(cause);
      const message = `the disks were restored and stay, but ${paths.join(", ")} could not be put in place: ${reason}`;
      throw new BackupError("E_BOOT_FILES", message, { cause, details: { paths } });
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#files[Symbol.asyncDispose]();
  }

  async #stage({ file, path, temporary = temporaryPathFor(path) }: FileTarget): Promise<void> {
    const { repository, domain, point, force, sync, signal } = this.#options;
    await refuseInside(repository, path);
    await refuseTarget(path, force);
    if (this.#finished.some(({ final }) => resolve(final) === resolve(path))) {
      throw new UsageError("E_TARGET", `two files would be restored to ${path}`, { details: { path } });
    }
    await using folder = await repository.openPoint(domain, point.id);
    await this.#refuseDamage(folder, file);
    this.#files.expect(temporary);
    await copyFrom(folder.at(file.file), temporary, { most: file.length, signal });
    if (sync) await syncFile(temporary);
    await using target = await HeldFolder.open(dirname(temporary));
    await this.#refuseDamage(target, { ...file, file: basename(temporary) });
    this.#finished.push({ temporary, final: path });
  }

  async #refuseDamage(folder: StoredFolder, file: KeptFile): Promise<void> {
    const { point, signal, asked } = this.#options;
    signal?.throwIfAborted();
    const damage = await damageOf(folder, file, signal);
    if (damage === undefined) return;
    const message = `the ${file.role} of point ${point.id} is damaged (${damage}): nothing was restored. The disks alone can be, by nbdpull restore${without(asked)}: name them with --disk`;
    throw new DamageError("E_DAMAGED", message, { details: { point: point.id, file: file.file } });
  }
}

/**
 * The part of a sentence that names the options to leave out, and no others: ` without --define and --live`.
 */
export function without(asked: readonly string[] = []): string {
  const [last, ...others] = asked.toReversed();
  if (last === undefined) return "";
  return ` without ${others.length === 0 ? last : `${others.reverse().join(", ")} and ${last}`}`;
}
