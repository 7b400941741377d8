import { hasCode } from "../base/errors.js";
import type { AskOptions } from "../s3/asker.js";
import { plainName } from "./aside-name.js";
import { notedPoint } from "./point-note.js";
import { unnamed } from "./settle-merge.js";
import type { Place } from "./store-place.js";
import { MOST_MANIFEST_BYTES } from "./stored-folder.js";
import type { StoredLeftovers } from "./stored-writing.js";

type LookPlace = Pick<Place, "bucket" | "prefix" | "manifest" | "isPoint" | "mergeState">;

/**
 * Finds what was left of points. Objects without a manifest and without a note are not told of: another
 * program may be copying a point there.
 */
export async function findLeftovers(place: LookPlace, options: AskOptions = {}): Promise<StoredLeftovers[]> {
  const { bucket, prefix, manifest, isPoint } = place;
  const points = new Map<string, { readonly names: string[]; uploads: number; isNoted: boolean }>();
  const pointOf = (id: string) => {
    const point = points.get(id) ?? { names: [], uploads: 0, isNoted: false };
    points.set(id, point);
    return point;
  };
  for await (const { key } of bucket.list(prefix, options)) {
    const [id = "", ...path] = key.slice(prefix.length).split("/");
    const noted = path.length === 0 ? notedPoint(id) : undefined;
    if (noted !== undefined && isPoint(noted)) pointOf(noted).isNoted = true;
    else if (isPoint(id) && path.length > 0) pointOf(id).names.push(path.join("/"));
  }
  for await (const { key } of bucket.pendingUploads(prefix, options)) {
    const [id = ""] = key.slice(prefix.length).split("/");
    if (isPoint(id)) pointOf(id).uploads += 1;
  }
  const found: StoredLeftovers[] = [];
  for (const [id, { names, uploads, isNoted }] of points) {
    const isPoint = names.includes(manifest);
    // What a merge leaves has such a name, or lies beside a file that has.
    const isMerged = isPoint && names.some((name) => plainName(name) !== name);
    const objects = isMerged ? await unnamedIn(place, id, names, options) : 0;
    if (isPoint && (isNoted || uploads + objects > 0)) found.push({ id, objects, uploads, isNoted });
    else if (isNoted) found.push({ id, objects: names.length, uploads, isNoted });
  }
  return found.sort((one, other) => (one.id < other.id ? -1 : 1));
}

async function unnamedIn(
  { bucket, prefix, manifest, mergeState }: LookPlace,
  id: string,
  names: readonly string[],
  options: AskOptions,
): Promise<number> {
  const found = await bucket
    .get(`${prefix}${id}/${manifest}`, MOST_MANIFEST_BYTES, options)
    .catch((error: unknown) => {
      if (hasCode(error, "E_S3_TOO_LARGE")) return undefined;
      throw error;
    });
  const state = found && mergeState(found.bytes);
  return state ? unnamed(names, state).length : 0;
}
