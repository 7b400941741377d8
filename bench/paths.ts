import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The project's folder, whether this file runs as it is or out of `dist`. */
export const PROJECT = projectFolder();

/** The command as it is published; `npm run build` makes it. BENCH_NBDPULL names another build to measure. */
export const NBDPULL = process.env["BENCH_NBDPULL"] ?? join(PROJECT, "dist", "bin", "nbdpull.js");

/** A source file of the harness that is no TypeScript: C, Python. */
export function benchFile(...names: readonly string[]): string {
  return join(PROJECT, "bench", ...names);
}

function projectFolder(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, "package.json"))) {
    if (folder === dirname(folder)) throw new Error("the harness is in no npm project");
    folder = dirname(folder);
  }
  return folder;
}
