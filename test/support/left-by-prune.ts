import { cpSync } from "node:fs";
import { readdir, rm, utimes } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import { type PruneOptions, prune } from "../../src/backup/prune/prune.js";
import { Repository } from "../../src/backup/repository/repository.js";

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

/**
 * Whichever step it died at: all kept points are there at once, and the next prune completes it.
 * @param expectPoints looks at points of a repository: first at all, then at those that are restored, too
 */
export async function expectCompleted(
  left: readonly LeftByPrune[],
  options: Omit<PruneOptions, "repository">,
  kept: readonly string[],
  expectPoints: (path: string, ids: readonly string[], restored?: readonly string[]) => Promise<void>,
): Promise<void> {
  for (const { step, path } of left) {
    const domain = join(path, options.domain);
    await ageLocks(domain);
    await expectPoints(path, kept);
    await ageLocks(domain);
    await prune({ ...options, repository: await Repository.open(path) });
    expect((await readdir(domain)).sort(), step).toEqual(kept);
    // The newest point is based on all others, or on the merged one.
    await expectPoints(path, kept, kept.slice(-1));
    await rm(path, { recursive: true });
  }
}
