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

const record = z.looseObject({
  format: z.literal("nbdpull-copied"),
  version: z.literal(1),
  sources: z.record(z.uuid(), z.array(z.string().refine(isPointId)).max(MOST_POINTS)),
});

/**
 * Which points a domain has got from other repositories, by the id of the repository: ids of points. What is
 * in it and not in the domain any more was removed here, as by a prune. What is in it and not in the other
 * repository any more was removed there.
 */
export type CopiedPoints = ReadonlyMap<string, ReadonlySet<string>>;

export interface CopiedRecord {
  readonly points: CopiedPoints;
  /** What else the record says, which stays; undefined: it is of another version, and stays as it is. */
  readonly others: Readonly<Record<string, unknown>> | undefined;
}

const NOTHING: CopiedRecord = { points: new Map(), others: {} };
const versioned = z.looseObject({ format: z.literal("nbdpull-copied"), version: z.number() });

/**
 * Whoever can write to the repository can forge or remove the record, so use it only to leave a point out of
 * a copy, and to name those that rules may remove.
 * @param folder of the domain; undefined: there is none
 * @returns nothing copied, if there is no record or none that can be read. Say so where it is of another
 *   version: then nothing is recorded, and each copy brings back what was dropped
 * @throws the file system's or the store's error
 */
export async function readCopied(folder: StoredFolder | undefined): Promise<CopiedRecord> {
  let text: string;
  try {
    if (!folder) return NOTHING;
    text = (await folder.read(COPIED_RECORD, MOST_BYTES)).toString("utf8");
  } catch (error) {
    if (hasCode(error, "ENOENT") || error instanceof DamageError) return NOTHING;
    throw error;
  }
  const value = parseJson(text);
  const parsed = record.safeParse(value);
  if (!parsed.success) {
    const version = versioned.safeParse(value).data?.version ?? 1;
    return version === 1 ? NOTHING : { ...NOTHING, others: undefined };
  }
  const { sources, ...others } = parsed.data;
  return { points: new Map(Object.entries(sources).map(([id, points]) => [id, new Set(points)])), others };
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
  if (before.others === undefined) return;
  const others = [...before.points].filter(([id]) => id !== source).slice(1 - MOST_SOURCES);
  const sources = Object.fromEntries(
    [...others, [source, points] as const].map(([id, each]) => [id, [...each].sort().slice(-MOST_POINTS)]),
  );
  await replaceRecord(folder, COPIED_RECORD, {
    ...{ format: "nbdpull-copied", version: 1, sources },
    ...before.others,
  });
}

/** Removes the record, as when all points of the domain have gone. */
export async function removeCopied(folder: RecordFolder): Promise<void> {
  const names = await sweepRecord(folder, COPIED_RECORD);
  if (names.includes(COPIED_RECORD)) await folder.unlink(COPIED_RECORD);
}
