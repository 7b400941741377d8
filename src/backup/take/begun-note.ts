import { createHmac, timingSafeEqual } from "node:crypto";
import { z } from "zod";
import { hasCode } from "../base/errors.js";
import { parseJson } from "../base/json.js";
import { isMissing } from "../host/durable-files.js";
import type { HeldFolder } from "../host/held-folder.js";
import type { Manifest } from "../repository/manifest.js";

/** In the folder of a point that is being made. */
const NOTE = "begun.json";
/** Longer than any note: it has the names of all disks, and libvirt's description of the job. */
const MOST_BYTES = 4 * 1024 * 1024;

const note = z.object({
  version: z.literal(1),
  id: z.string(),
  createdAt: z.iso.datetime(),
  /** How many runs have gone on with the point. */
  resumed: z.number().int().nonnegative(),
  /** What the caller says of the point. */
  about: z.record(z.string(), z.unknown()),
  /** The definition and the files of the domain, which lie in the folder. */
  kept: z.record(z.string(), z.unknown()),
});
const sealed = z.object({ code: z.string().regex(/^[0-9a-f]{64}$/), note: z.string() });

/**
 * What a point's folder says of it until it is committed, so that a later run can go on with it. Others may
 * write to the folder, so the note is sealed with the job's secret (HMAC-SHA256).
 */
export interface BegunNote {
  readonly id: string;
  readonly createdAt: string;
  readonly resumed: number;
  readonly about: Readonly<Record<string, unknown>>;
  readonly kept: Pick<Manifest, "files" | "notKept">;
}

export async function writeNote(
  folder: HeldFolder,
  key: Buffer,
  { id, createdAt, resumed, about, kept }: BegunNote,
): Promise<void> {
  const text = JSON.stringify({ version: 1, id, createdAt, resumed, about, kept });
  await folder.replace(NOTE, `${JSON.stringify({ code: codeOf(text, key).toString("hex"), note: text })}\n`);
}

/** Undefined: there is none, or it was not sealed with this key. */
export async function readNote(folder: HeldFolder, key: Buffer): Promise<BegunNote | undefined> {
  let bytes: Buffer;
  try {
    bytes = await folder.read(NOTE, MOST_BYTES);
  } catch (error) {
    if (isMissing(error) || hasCode(error, "E_LINK")) return undefined;
    throw error;
  }
  const found = sealed.safeParse(parseJson(bytes.toString("utf8"))).data;
  if (!found || !timingSafeEqual(Buffer.from(found.code, "hex"), codeOf(found.note, key))) return undefined;
  const read = note.safeParse(parseJson(found.note)).data;
  // What is sealed was written by `writeNote`.
  return read && { ...read, kept: read.kept as BegunNote["kept"] };
}

export async function removeBegunNote(folder: HeldFolder): Promise<void> {
  await folder.unlink(NOTE);
}

function codeOf(text: string, key: Buffer): Buffer {
  return createHmac("sha256", key).update("begun").update(text).digest();
}
