import { z } from "zod";
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

const whole = z.number().int().nonnegative();
const entry = z.object({
  position: whole,
  runs: z.array(
    z.union([
      z.tuple([z.enum(["data", "zero"]), whole, whole, whole]),
      z.tuple([z.literal("partial"), whole, whole, whole, whole]),
    ]),
  ),
  digests: z.string(),
  sizes: z.array(whole),
});

/** One record of some entries, in guest order. */
export function recordOf(entries: readonly JournalEntry[]): z.input<typeof entry> {
  const last = entries.at(-1);
  return {
    position: last?.position ?? 0,
    runs: entries.flatMap(({ runs }) =>
      runs.map((run) =>
        run.kind === "partial"
          ? ([run.kind, run.cluster, run.hostOffset, run.dataMask, run.zeroMask] as const)
          : ([run.kind, run.cluster, run.hostOffset, run.count] as const),
      ),
    ) as z.input<typeof entry>["runs"],
    digests: Buffer.concat(entries.map(({ digests }) => digests)).toString("base64"),
    sizes: entries.flatMap(({ sizes }) => sizes),
  };
}

/** Undefined if the record is none of an entry. */
export function entryOf(record: unknown): JournalEntry | undefined {
  const parsed = entry.safeParse(record).data;
  if (!parsed) return undefined;
  const { position, sizes } = parsed;
  const runs = parsed.runs.map(
    (each): JournaledRun =>
      each[0] === "partial"
        ? {
            kind: each[0],
            cluster: each[1],
            count: 1,
            hostOffset: each[2],
            dataMask: each[3],
            zeroMask: each[4],
          }
        : { kind: each[0], cluster: each[1], hostOffset: each[2], count: each[3] },
  );
  return { position, runs, sizes, digests: Buffer.from(parsed.digests, "base64") };
}

/** The guest cluster behind the last run; 0 without runs. */
export function endOfRuns(runs: readonly Pick<PlannedRun, "cluster" | "count">[]): number {
  const last = runs.at(-1);
  return last === undefined ? 0 : last.cluster + last.count;
}
