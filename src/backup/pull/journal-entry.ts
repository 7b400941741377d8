import type { PlannedRun } from "../image/image.js";

/**
 * A run that is stored, and where: `hostOffset` is 0 in compressed images, and of runs that store nothing.
 */
export type JournaledRun = PlannedRun & { readonly hostOffset: number };

/** What was stored between two flushes. */
export interface JournalEntry {
  /** In guest order. Zero runs of a complete image are left out. */
  readonly runs: readonly JournaledRun[];
  /** Of the runs' clusters, as the digest file has them. */
  readonly digests: Buffer;
  /** The guest cluster behind the last one that was looked at. */
  readonly position: number;
  /** Compressed images: of each stored cluster the length of its stream, or 0 if it is stored whole. */
  readonly sizes: readonly number[];
}

/** An entry as JSON has it. */
interface EntryRecord {
  readonly position: number;
  /** Kind, cluster and host offset; then the count, or of a partial cluster its masks. */
  readonly runs: readonly (readonly [string, ...number[]])[];
  /** Base64. */
  readonly digests: string;
  readonly sizes: readonly number[];
}

/** One record of some entries, in guest order. */
export function recordOf(entries: readonly JournalEntry[]): EntryRecord {
  const last = entries.at(-1);
  return {
    position: last?.position ?? 0,
    runs: entries.flatMap(({ runs }) =>
      runs.map((run) =>
        run.kind === "partial"
          ? ([run.kind, run.cluster, run.hostOffset, run.dataMask, run.zeroMask] as const)
          : ([run.kind, run.cluster, run.hostOffset, run.count] as const),
      ),
    ),
    digests: Buffer.concat(entries.map(({ digests }) => digests)).toString("base64"),
    sizes: entries.flatMap(({ sizes }) => sizes),
  };
}

/** The guest cluster behind the last run; 0 without runs. */
export function endOfRuns(runs: readonly Pick<PlannedRun, "cluster" | "count">[]): number {
  const last = runs.at(-1);
  return last === undefined ? 0 : last.cluster + last.count;
}
