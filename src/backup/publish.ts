import { randomBytes } from "node:crypto";
import { rename } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { UsageError } from "./errors.js";
import { exists, syncFolder } from "./files.js";

/**
 * Where a file is made before it gets its name: beside it, hidden, and never the same twice.
 */
export function temporaryPathFor(path: string): string {
  return join(dirname(path), `.${basename(path)}.${randomBytes(4).toString("hex")}.partial`);
}

/** @throws {UsageError} there is something at `path`, and `force` was not given */
export async function refuseExisting(path: string, force: boolean): Promise<void> {
  if (force || !(await exists(path))) return;
  const message = `${path} exists already and was not touched: name another file, or use --force to replace it`;
  throw new UsageError("E_EXISTS", message, { details: { path } });
}

/**
 * Gives finished files their final names, the last one last: with it the whole counts as there.
 * @throws {UsageError} a file has appeared at one of them meanwhile, and `force` was not given
 */
export async function publish(
  files: readonly { readonly temporary: string; readonly final: string }[],
  options: { readonly sync: boolean; readonly force: boolean },
): Promise<void> {
  for (const { final } of files) await refuseExisting(final, options.force);
  for (const { temporary, final } of files) await rename(temporary, final);
  if (options.sync) {
    for (const folder of new Set(files.map(({ final }) => dirname(final)))) await syncFolder(folder);
  }
}
