import { z } from "zod";
import { isUnreadable } from "../base/damage.js";
import { DamageError, hasCode } from "../base/errors.js";
import { parseJson } from "../base/json.js";
import { isMissing } from "../host/durable-files.js";
import type { RecordFolder } from "../storage/record-folder.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import { replaceRecord } from "./replace-record.js";

/** The record of a point's last rehearsal. No file that a manifest names can be called so. */
const REHEARSAL_RECORD = ".rehearsed.json";
/** Longer than any record that is written. */
const MOST_BYTES = 64 * 1024;
const MOST_CHARACTERS = 2000;
const MOST_COMMAND = 4096;

const record = z.object({
  format: z.literal("nbdpull-rehearsal"),
  version: z.literal(1),
  /** When it ended. */
  at: z.iso.datetime(),
  /** Whether the guest came up. */
  cameUp: z.boolean(),
  /** What was waited for: `agent`, `serial` and a pattern, or `tcp` and a port. */
  sign: z.string().max(MOST_CHARACTERS),
  /** From the start of the guest to the sign, or to the end of the patience. */
  seconds: z.number().nonnegative(),
  /** Why it did not come up. */
  reason: z.string().max(MOST_CHARACTERS).optional(),
  /** The command that was run in it. */
  ran: z
    .object({
      command: z.string().max(MOST_COMMAND),
      /** Absent: it did not end by itself. */
      exitCode: z.int().optional(),
      /** The end of what it wrote. */
      output: z.string().max(MOST_COMMAND),
    })
    .optional(),
});

/** What came of the last rehearsal of a point. */
export type RehearsalRecord = Readonly<Omit<z.infer<typeof record>, "format" | "version">>;

/**
 * Whoever can write to the repository can forge it, so it is only shown.
 * @param folder of the point
 * @returns undefined if there is none, or none that can be read
 * @throws the file system's error
 */
export async function readRehearsal(folder: StoredFolder): Promise<RehearsalRecord | undefined> {
  let text: string;
  try {
    text = (await folder.read(REHEARSAL_RECORD, MOST_BYTES)).toString("utf8");
  } catch (error) {
    const isNone = isMissing(error) || error instanceof DamageError;
    // It is only shown, so it must not keep anybody from backing up.
    if (isNone || isUnreadable(error) || hasCode(error, "EACCES")) return undefined;
    throw error;
  }
  const { data } = record.safeParse(parseJson(text));
  if (!data) return undefined;
  const { format: _format, version: _version, ...rest } = data;
  return rest;
}

/** @throws the file system's error: EROFS, EACCES */
export async function recordRehearsal(folder: RecordFolder, found: RehearsalRecord): Promise<void> {
  const reason = found.reason?.slice(0, MOST_CHARACTERS);
  const ran = found.ran && { ...found.ran, command: found.ran.command.slice(0, MOST_COMMAND) };
  const content = { format: "nbdpull-rehearsal", version: 1, ...found, reason, ran };
  await replaceRecord(folder, REHEARSAL_RECORD, content);
  await folder.sync();
}
