import { UsageError } from "../src/backup/base/errors.js";

/** Options of `restore` that `--live` is about, and those that it needs. */
export interface LiveOptions {
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
export function assertLive({ live, define, xml, format, resume, start }: LiveOptions): void {
  if (!live) {
    if (!resume && start) return;
    throw new UsageError("E_USAGE", "--resume and --no-start are about --live: give that too");
  }
  if (define !== undefined && xml === undefined && format !== "raw") return;
  const message =
    "--live runs a domain on qcow2 files: give --define (with --keep-identity for one that is gone), and leave out --xml and --format raw";
  throw new UsageError("E_USAGE", message);
}
