import { z } from "zod";
import { DamageError, hasCode } from "../base/errors.js";
import { parseJson } from "../base/json.js";
import type { RecordFolder } from "../storage/record-folder.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import { isPointId } from "./manifest.js";
import { replaceRecord, sweepRecord } from "./replace-record.js";

/** The record of what was copied to a domain, beside its points. */
const COPIED_RECORD = ".copied.json";
/** Longer than any record that is written. */
const MOST_BYTES = 16 * 1024 * 1024;
/** Of one domain. More points are not remembered, the oldest first. */
const MOST_POINTS = 100_000;
/** Repositories that are remembered: those that were copied from last. */
const MOST_SOURCES = 8;

const record = z.object({
  format: z.literal("nbdpull-copied"),
  version: z.literal(1),
  sources: z.record(z.uuid(), z.array(z.string().refine(isPointId)).max(MOST_POINTS)),
});

/**
 * Which points a domain has got from other repositories, by the id of the repository: ids of points. What is
 * in it and not in the domain any more was removed here, as by a prune. What is in it and not in the other
 * repository any more was removed there.
 */
export type CopiedRecord = ReadonlyMap<string, ReadonlySet<string>>;

/**
 * Whoever can write to the repository can forge or remove the record, so use it only to leave a point out of
 * a copy, and to name those that rules may remove.
 * @param folder of the domain; undefined: there is none
 * @returns nothing copied, if there is no record or none that can be read
 * @throws the file system's or the store's error
 */
export async function readCopied(folder: StoredFolder | undefined): Promise<CopiedRecord> {
  let text: string;
  try {
    if (!folder) return new Map();
    text = (await folder.read(COPIED_RECORD, MOST_BYTES)).toString("utf8");
  } catch (error) {
    if (hasCode(error, "ENOENT") || error instanceof DamageError) return new Map();
    throw error;
  }
  const parsed = record.safeParse(parseJson(text));
  if (!parsed.success) return new Map();
  return new Map(Object.entries(parsed.data.sources).map(([id, points]) => [id, new Set(points)]));
}

/**
 * Replaces what is recorded of one repository.
 * @param folder of the domain
 * @param source the id of the repository that was copied from
 * @throws the file system's or the store's error
 */
export async function recordCopied(
  folder: RecordFolder,
  before: CopiedRecord,
  source: string,
  points: ReadonlySet<string>,
): Promise<void> {
  const others = [...before].filter(([id]) => id !== source).slice(1 - MOST_SOURCES);
  const sources = Object.fromEntries(
    [...others, [source, points] as const].map(([id, each]) => [id, [...each].sort().slice(-MOST_POINTS)]),
  );
  await replaceRecord(folder, COPIED_RECORD, { format: "nbdpull-copied", version: 1, sources });
}

/** Removes the record, as when all points of the domain have gone. */
export async function removeCopied(folder: RecordFolder): Promise<void> {
  const names = await sweepRecord(folder, COPIED_RECORD);
  if (names.includes(COPIED_RECORD)) await folder.unlink(COPIED_RECORD);
}
