/** What is told of a point that is served, by whatever command. */
import { BackupError, DamageError, messageOf } from "../src/backup/base/errors.js";
import type { ServedDisk, ServeEvent } from "../src/backup/serve/serve.js";
import { EXIT } from "./exit-codes.js";
import type { Output } from "./output.js";

/** Says of which disks it can't be proven that they are what was stored. */
export function tellAssurance(
  disks: readonly Pick<ServedDisk, "disk" | "checked" | "proven">[],
  output: Output,
): void {
  for (const { disk, checked, proven } of disks) {
    if (!checked) output.warn(`${disk}: a layer has no digests, so its data is served unproven`);
    else if (!proven) {
      output.note(`${disk}: what is read matches its checksum (xxh64), which finds damage but no forgery`);
    }
  }
}

/** Most messages that are printed, each once: a client that keeps retrying must not repeat them. */
const REMEMBERED = 1000;

/**
 * Damage is reported once, as a warning, and by the exit code. That a store is away is told once for all
 * reads that failed for it.
 */
export function tellEvents(output: Output): (event: ServeEvent) => void {
  const told = new Set<string>();
  return ({ type, error }) => {
    if (type === "read-failed" && error instanceof DamageError) process.exitCode = EXIT.damaged;
    const message = error instanceof Error ? error.message : String(error);
    const what = isOfStore(error) ? error.code : message;
    if (told.has(what) || told.size >= REMEMBERED) return;
    told.add(what);
    output.warn(told.size < REMEMBERED ? message : `${message}; further ones are not told`);
  };
}

/** Without its cache it serves on. */
export function tellCacheFailure(output: Output): (error: unknown) => void {
  return (error) => output.warn(`nothing more is cached: ${messageOf(error)}. It is served all the same`);
}

function isOfStore(error: unknown): error is BackupError {
  return error instanceof BackupError && !(error instanceof DamageError) && /^E_S3_/.test(error.code);
}
