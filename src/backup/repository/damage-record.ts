import { z } from "zod";
import { DamageError, hasCode, messageOf } from "../base/errors.js";
import { parseJson } from "../base/json.js";
import type { RecordFolder } from "../storage/record-folder.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import { replaceRecord, sweepRecord } from "./replace-record.js";

/** The record of a point's damage. No file that a manifest names can be called so. */
export const DAMAGE_RECORD = ".damage.json";
/** Longer than any record that is written. */
const MOST_BYTES = 1024 * 1024;
/** Most places that a record names; a wrecked image has many. */
const MOST_PLACES = 500;
const MOST_CHARACTERS = 500;

const place = z.object({
  /** Missing if it concerns the point as a whole, such as its NVRAM. */
  disk: z.string().max(64).optional(),
  message: z.string().max(MOST_CHARACTERS),
  /** Bytes of the disk, like `length`. Missing if the damage concerns a whole file. */
  guestOffset: z.number().int().nonnegative().optional(),
  length: z.number().int().nonnegative().optional(),
});

const record = z.object({
  format: z.literal("nbdpull-damage"),
  version: z.literal(1),
  foundAt: z.iso.datetime(),
  places: z.array(place).min(1).max(MOST_PLACES),
});

/** A damaged place of a point. */
export type RecordedDamage = Readonly<z.infer<typeof place>>;

/** What the last verify of a point found damaged. */
interface DamageRecord {
  /** ISO 8601; undefined if the record can't be read. */
  readonly foundAt: string | undefined;
  /** At least one. */
  readonly places: readonly RecordedDamage[];
}

/**
 * What a verify found damaged in a point, and no later verify found mended. Whoever can write to the
 * repository can forge or remove the record, so use it only to do more: a full backup in place of an
 * increment. Never use it to check less.
 * @param folder of the point
 * @returns undefined if there is no record. One that can't be read counts as damage of the whole point.
 * @throws the file system's error
 */
export async function readDamage(folder: StoredFolder): Promise<DamageRecord | undefined> {
  const unknown = (why: string): DamageRecord => ({
    foundAt: undefined,
    places: [{ message: `its record of damage (${DAMAGE_RECORD}) ${why}: verify the point again` }],
  });
  let text: string;
  try {
    text = (await folder.read(DAMAGE_RECORD, MOST_BYTES)).toString("utf8");
  } catch (error) {
    if (hasCode(error, "ENOENT")) return undefined;
    if (error instanceof DamageError) return unknown(`can't be read (${messageOf(error)})`);
    throw error;
  }
  const parsed = record.safeParse(parseJson(text));
  if (!parsed.success) return unknown("has another format");
  return { foundAt: parsed.data.foundAt, places: parsed.data.places };
}

/**
 * Replaces the record of a point by what a verify of the whole point has found just now; without damage,
 * removes it.
 * @param folder of the point
 * @throws the file system's error: EROFS, EACCES
 */
export async function recordDamage(folder: RecordFolder, found: readonly RecordedDamage[]): Promise<void> {
  const names = await sweepRecord(folder, DAMAGE_RECORD);
  if (found.length === 0) {
    if (!names.includes(DAMAGE_RECORD)) return;
    await folder.unlink(DAMAGE_RECORD);
  } else {
    const places = found.slice(0, MOST_PLACES).map(({ disk, message, guestOffset, length }) => ({
      ...{ disk, guestOffset, length },
      message: message.slice(0, MOST_CHARACTERS),
    }));
    const foundAt = new Date().toISOString();
    const content = { format: "nbdpull-damage", version: 1, foundAt, places };
    await replaceRecord(folder, DAMAGE_RECORD, content);
  }
  await folder.sync();
}
