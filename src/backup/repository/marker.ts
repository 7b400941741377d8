import { randomUUID } from "node:crypto";
import { z } from "zod";
import { DamageError, PreconditionError } from "../base/errors.js";
import { parseJson } from "../base/json.js";
import { isMissing } from "../host/durable-files.js";
import type { StoreAbilities, StoredFolder } from "../storage/stored-folder.js";
import { MARKER } from "./folder-name.js";

/** Longer than any marker. */
const MOST_MARKER_BYTES = 64 * 1024;

const marker = z.object({
  format: z.literal("nbdpull-repository"),
  version: z.literal(1),
  id: z.uuid(),
  store: z.object({ conditionalCreate: z.boolean(), conditionalReplace: z.boolean() }).optional(),
});

/**
 * What marks a new repository: its id is new.
 * @param store what the object store can do that it lies in, for those who write there
 */
export function newMarker(store?: StoreAbilities): string {
  return `${JSON.stringify({ format: "nbdpull-repository", version: 1, id: randomUUID(), store }, null, 2)}\n`;
}

/**
 * The id of the repository in this folder.
 * @returns undefined if there is no marker file
 * @throws {DamageError} `E_REPOSITORY`: it cannot be read, or is no marker
 */
export async function readMarker(root: StoredFolder): Promise<string | undefined> {
  return (await readWholeMarker(root))?.id;
}

/**
 * What the store was found to do when the repository was made in it.
 * @returns undefined if that was elsewhere: somebody has copied it there
 */
export async function abilitiesIn(root: StoredFolder): Promise<StoreAbilities | undefined> {
  return (await readWholeMarker(root))?.store;
}

async function readWholeMarker(root: StoredFolder): Promise<z.infer<typeof marker> | undefined> {
  const wrong = (why: string, cause?: unknown): DamageError => {
    const message = `${root.path}/${MARKER} is not the mark of a repository of version 1${why}`;
    return new DamageError("E_REPOSITORY", message, { cause, details: { path: root.path } });
  };
  let text: string;
  try {
    text = (await root.read(MARKER, MOST_MARKER_BYTES)).toString("utf8");
  } catch (cause) {
    if (isMissing(cause)) return undefined;
    if (cause instanceof DamageError) throw wrong(`: ${cause.message}`, cause);
    throw cause;
  }
  const parsed = marker.safeParse(parseJson(text));
  if (parsed.success) return parsed.data;
  throw wrong("");
}

export function noRepository(path: string): PreconditionError {
  const message = `there is no repository at ${path}: ${MARKER} is not there`;
  return new PreconditionError("E_NO_REPOSITORY", message, { details: { path } });
}

/**
 * A domain without a folder has no points, unless the repository itself is gone, as from a file system that
 * was unmounted.
 * @param root in which the domain has no folder
 * @throws {PreconditionError} `E_NO_REPOSITORY`
 */
export async function requireMarker(root: StoredFolder): Promise<void> {
  if (!(await root.find(MARKER))) throw noRepository(root.path);
}
