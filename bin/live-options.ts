import { UsageError } from "../src/backup/base/errors.js";
import type { CacheOptions } from "./cache-options.js";

/** Options of `restore` that `--live` is about, and those that it needs. */
export interface LiveOptions extends CacheOptions {
  readonly to: string;
  /** If empty, the program chooses a name. */
  readonly define?: string;
  readonly keepIdentity?: true;
  readonly trustDefinition?: true;
  readonly adapt?: true;
  readonly xml?: string;
  readonly format?: "qcow2" | "raw";
  readonly live?: true;
  readonly resume?: true;
  /** False with `--no-start`. */
  readonly start: boolean;
  readonly salvage?: true;
  readonly force?: true;
  readonly limitRate?: number;
  readonly connect?: string;
}

/** @throws {UsageError} `E_USAGE`: options that make no sense together */
export function assertLive(options: LiveOptions): void {
  const { live, define, xml, format, resume, start, cache, cacheSize } = options;
  if (!live) {
    if (!resume && start && cache === undefined && cacheSize === undefined) return;
    throw new UsageError("E_USAGE", "--resume, --no-start and --cache are about --live: give that too");
  }
  if (define !== undefined && xml === undefined && format !== "raw") return;
  const message =
    "--live runs a domain on qcow2 files: give --define (with --keep-identity for one that is gone), and leave out --xml and --format raw";
  throw new UsageError("E_USAGE", message);
}
