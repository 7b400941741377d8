import { z } from "zod";
import type { JournalEntry, JournaledRun } from "./journal-entry.js";

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
