import { z } from "zod";
import { type JournalTarget, LeftJournal } from "./left-journal.js";

const leftHeader = z.object({
  complete: z.boolean(),
  geometry: z.object({ clusterSize: z.number() }),
  reason: z.string().nullish(),
});

/** What the journal says of an image that a killed run has begun, if there is one to go on with. */
export async function leftHeaderOf(
  target: Pick<JournalTarget, "path" | "key" | "resume"> | undefined,
): Promise<z.infer<typeof leftHeader> | undefined> {
  const left = target?.resume ? await LeftJournal.open(target) : undefined;
  await left?.close();
  return leftHeader.safeParse(left?.header).data;
}
