import { type MendedTime, mendClock } from "../src/backup/repository/mend-clock.js";
import type { Repository } from "../src/backup/repository/repository.js";
import type { Context } from "./run.js";

/** Dates the points of some domains anew, or only tells what it would do, and prints it. */
export async function fixClock(
  repository: Repository,
  domains: readonly string[],
  dryRun: boolean,
  { output, signal }: Context,
): Promise<void> {
  const mended: (MendedTime & { readonly domain: string })[] = [];
  for (const domain of domains) {
    const done = await mendClock(repository, domain, { dryRun, signal });
    mended.push(...done.map((time) => ({ domain, ...time })));
  }
  const lines = mended.map(
    ({ domain, id, was, createdAt, by }) => `${domain}  ${id}  ${was} -> ${createdAt}  (${SOURCES[by]})`,
  );
  output.result({ dryRun, mended }, lines.length > 0 ? lines : ["all times fit, nothing to mend"]);
}

/** What tells the new time. */
const SOURCES: Readonly<Record<MendedTime["by"], string>> = {
  checkpoint: "by its checkpoint",
  files: "by its oldest file",
  next: "that of the next point: it is not younger",
  now: "now: it is not younger",
};
