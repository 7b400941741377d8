import { pointsAtOnce } from "../src/backup/storage/open-store.js";
import type { Output } from "./output.js";

interface AtOnceOptions {
  /** Where their points go. */
  readonly to: string;
  /** What the user asked for; undefined: nothing. */
  readonly jobs: number | undefined;
  readonly usual: number;
  /** How many domains there are. */
  readonly count: number;
  readonly isCopied?: boolean;
}

/** How many domains are worked on side by side. Says so if that is fewer than the user asked for. */
export function domainsAtOnce(
  output: Output,
  { to, jobs, usual, count, isCopied = false }: AtOnceOptions,
): number {
  const wanted = Math.max(1, Math.min(jobs ?? usual, count));
  const most = pointsAtOnce(to, wanted, isCopied);
  if (jobs !== undefined && most < wanted) {
    output.note(
      `--jobs ${jobs}: ${most} domains at a time, since what is uploaded to an object store waits in memory`,
    );
  }
  return most;
}
