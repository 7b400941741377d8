import type { Command } from "commander";
import { UsageError } from "../src/backup/base/errors.js";
import type { DiskCacheOptions } from "../src/backup/serve/disk-cache.js";
import { grouped } from "./option-groups.js";
import { size } from "./options.js";

export interface CacheOptions {
  readonly cache?: string;
  readonly cacheSize?: number;
}

const DEFAULT_BYTES = 1024 ** 3;

/** The options of commands that serve a point, by which they keep what they have read. */
export function withCache(command: Command): Command {
  return grouped(command, "A cache on a disk", () =>
    command
      .option("--cache <folder>", "keep what was read of the repository in a file there, which has no name")
      .option("--cache-size <bytes>", "with --cache: at most so much (default 1G)", size),
  );
}

/** @throws {UsageError} `E_USAGE`: a size without a folder */
export function cacheOf({ cache: folder, cacheSize: bytes }: CacheOptions): DiskCacheOptions | undefined {
  if (folder !== undefined) return { folder, bytes: bytes ?? DEFAULT_BYTES };
  if (bytes === undefined) return undefined;
  throw new UsageError("E_USAGE", "--cache-size is about --cache: give that too");
}
