import { cpSync } from "node:fs";
import { readdir, utimes } from "node:fs/promises";
import { join } from "node:path";
import { type PruneOptions, prune } from "../../src/backup/prune/prune.js";

/** A repository as left by a prune that died at a step. */
export interface LeftByPrune {
  readonly step: string;
  readonly path: string;
}

/**
 * Prunes, and copies the repository at each step. The copy equals what a process killed there would leave,
 * and costs less than a process.
 * @param folder where the copies go
 */
export async function leftByPrune(options: PruneOptions, folder: string): Promise<LeftByPrune[]> {
  const left: LeftByPrune[] = [];
  const onStep = (step: string): void => {
    const path = join(folder, `left-${left.length}`);
    cpSync(options.repository.path, path, { recursive: true });
    left.push({ step, path });
  };
  await prune({ ...options, onStep });
  return left;
}

/** Makes the domain's locks stale, as after some seconds without their owner. */
export async function ageLocks(domainFolder: string): Promise<void> {
  for (const name of await readdir(domainFolder)) {
    if (name === ".lock" || name.startsWith(".reader-")) await utimes(join(domainFolder, name), 0, 0);
  }
}
