import { isDeepStrictEqual } from "node:util";
import { BackupError, DamageError, hasCode, messageOf } from "../base/errors.js";
import { allOrNone } from "../base/in-parallel.js";
import { isMissing } from "../host/durable-files.js";
import type { HeldFolder } from "../host/held-folder.js";
import { MOST_MANIFEST_BYTES, type StoredFolder } from "../storage/stored-folder.js";
import { type Manifest, parseManifest } from "./manifest.js";
import { manifestTextOf } from "./manifest-text.js";

export const MANIFEST = "point.json";
/** Manifests that are read side by side: as many as Node has threads for files, and more of a store. */
const READS_AT_ONCE = 4;
const READS_OF_STORE = 16;

/**
 * Reads the manifest of a point.
 * @param folder in which it lies
 * @param facts for the error's details
 * @throws {DamageError} `E_MANIFEST`: it is missing, unreadable, wrong, or another point's
 */
export async function readManifest(
  folder: StoredFolder,
  id: string,
  name = MANIFEST,
  facts: Readonly<Record<string, unknown>> = {},
): Promise<Manifest> {
  const path = `${folder.path}/${name}`;
  const fail = (what: string, cause?: unknown): DamageError =>
    new DamageError("E_MANIFEST", what, { cause, details: { ...facts, point: id } });
  let text: string;
  try {
    text = (await folder.read(name, MOST_MANIFEST_BYTES)).toString("utf8");
  } catch (cause) {
    if (hasCode(cause, "EACCES")) throw cause;
    if (isMissing(cause)) throw fail(`point ${id} has no manifest: ${path} is missing`, cause);
    // A store that is away, or that was asked by a command that was ended, says nothing of it.
    if (!(cause instanceof DamageError) && !isSystemError(cause)) throw cause;
    throw fail(`the manifest of point ${id} cannot be read: ${messageOf(cause)}`, cause);
  }
  const manifest = parseManifest(text, path, { ...facts, point: id });
  if (manifest.id === id) return manifest;
  throw fail(`${path} is the manifest of point ${manifest.id}: the folder was renamed`);
}

/**
 * Reads the manifests of points, in their order, without those that are damaged.
 * @param folder of the domain
 * @param options.onGone throws what is to be told of a point whose folder is gone
 */
export async function readManifests(
  folder: StoredFolder,
  ids: readonly string[],
  options: {
    readonly domain: string;
    readonly isInStore: boolean;
    readonly onGone: (id: string) => never;
    readonly onDamage: (error: DamageError) => void;
  },
): Promise<Manifest[]> {
  const read = async (id: string): Promise<Manifest> => {
    await using point = await folder.folder(id);
    if (!point) return options.onGone(id);
    return await readManifest(point, id, MANIFEST, { domain: options.domain });
  };
  const atOnce = options.isInStore ? READS_OF_STORE : READS_AT_ONCE;
  return await allButDamaged(ids, atOnce, { read, onDamage: options.onDamage });
}

/**
 * What `read` gives for each of `ids`, in their order, without those that are damaged.
 * @param atOnce how many are read side by side
 */
async function allButDamaged<T>(
  ids: readonly string[],
  atOnce: number,
  options: { readonly read: (id: string) => Promise<T>; readonly onDamage: (error: DamageError) => void },
): Promise<T[]> {
  const read = async (id: string): Promise<DamageError | { readonly sound: T }> => {
    try {
      return { sound: await options.read(id) };
    } catch (error) {
      if (error instanceof DamageError) return error;
      throw error;
    }
  };
  const all: T[] = [];
  for (const found of await allOrNone(ids, atOnce, undefined, read)) {
    if (found instanceof DamageError) options.onDamage(found);
    else all.push(found.sound);
  }
  return all;
}

/** Whether the file system has refused. */
function isSystemError(error: unknown): boolean {
  return error instanceof Error && !(error instanceof BackupError) && "syscall" in error;
}

/**
 * The text of a manifest that was read as `known`.
 * @throws {DamageError} `E_MANIFEST`: it is another one now
 */
export async function manifestText(folder: StoredFolder, known: Manifest): Promise<string> {
  const text = (await folder.read(MANIFEST, MOST_MANIFEST_BYTES)).toString("utf8");
  const path = `${folder.path}/${MANIFEST}`;
  if (isDeepStrictEqual(parseManifest(text, path), known)) return text;
  throw new DamageError("E_MANIFEST", `${path} was changed meanwhile`, { details: { point: known.id } });
}

/**
 * Gives the manifest of a point another `createdAt`, in one step. All else stays as it is, also what this
 * program knows nothing of.
 * @param beforeRename called right before the change
 * @throws {DamageError} `E_LINK`: something else is in its place; as `manifestTextOf`
 */
export async function redate(
  folder: HeldFolder,
  createdAt: string,
  beforeRename: () => Promise<void>,
): Promise<void> {
  // What a run that was killed has left.
  for (const name of await folder.names()) if (name.startsWith(`.${MANIFEST}.`)) await folder.unlink(name);
  const before = (await folder.read(MANIFEST, MOST_MANIFEST_BYTES)).toString("utf8");
  await folder.replace(MANIFEST, redated(before, createdAt), beforeRename);
  await folder.sync();
}

/** The text of a manifest with another `createdAt`. @throws {DamageError} as `manifestTextOf` */
export function redated(text: string, createdAt: string): string {
  return manifestTextOf({ ...(JSON.parse(text) as object), createdAt });
}
