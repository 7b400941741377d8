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
    const given = [
      ...(resume ? ["--resume"] : []),
      ...(start ? [] : ["--no-start"]),
      ...(cache === undefined ? [] : ["--cache"]),
      ...(cacheSize === undefined ? [] : ["--cache-size"]),
    ];
    if (given.length === 0) return;
    const about = given.length === 1 ? "is about" : "are about";
    throw new UsageError("E_USAGE", `${given.join(" and ")} ${about} --live: give that too`);
  }
  const wrong = [...(xml === undefined ? [] : ["--xml"]), ...(format === "raw" ? ["--format raw"] : [])];
  if (define !== undefined && wrong.length === 0) return;
  const next = [
    ...(define === undefined ? ["give --define (with --keep-identity for one that is gone)"] : []),
    ...(wrong.length === 0 ? [] : [`leave out ${wrong.join(" and ")}`]),
  ];
  throw new UsageError("E_USAGE", `--live runs a domain on qcow2 files: ${next.join(", and ")}`);
}
