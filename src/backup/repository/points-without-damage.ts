import { DamageError } from "../base/errors.js";
import { ownersOf } from "./point-owners.js";
import type { Repository } from "./repository.js";

/** A point, or one of its disks, that can't be used. */
interface Broken {
  readonly point: string;
  /** Undefined: all disks of the point. */
  readonly disk?: string | undefined;
}

/** Most points that a message names. */
const NAMED = 5;

/**
 * The points whose disks can be restored without what is broken, as far as manifests tell; newest first.
 * @param disks the disks that each point must have; undefined: those that it has
 */
async function restorablePoints(
  repository: Repository,
  domain: string,
  broken: Broken,
  disks?: readonly string[],
): Promise<string[]> {
  const sound = new Set<string>();
  const restorable: string[] = [];
  const points = await repository.points(domain, () => undefined);
  const owners = ownersOf(points);
  const owner = owners.get(broken.point);
  // Points come oldest first, so a parent is always looked at before its child.
  for (const point of points) {
    for (const { name, parent } of point.disks) {
      const isHit = point.id === broken.point && (broken.disk ?? name) === name;
      if (!isHit && (parent === null || sound.has(`${parent}/${name}`))) sound.add(`${point.id}/${name}`);
    }
    const wanted = disks ?? point.disks.map(({ name }) => name);
    // A point of another domain would be no help. Whose a damaged one was, its manifest doesn't tell any
    // more.
    if (owner !== undefined && owners.get(point.id) !== owner) continue;
    if (wanted.every((name) => sound.has(`${point.id}/${name}`))) restorable.unshift(point.id);
  }
  return restorable;
}

/**
 * Adds to a `DamageError` the points that can be restored all the same. Returns other errors unchanged.
 * @param disks the disks that were to be restored; undefined: all
 */
export async function withRestorable(
  error: unknown,
  repository: Repository,
  domain: string,
  disks?: readonly string[],
): Promise<unknown> {
  if (!(error instanceof DamageError)) return error;
  const { point, missing, disk } = error.details;
  const broken = missing ?? point;
  if (typeof broken !== "string") return error;
  const which = { point: broken, disk: typeof disk === "string" ? disk : undefined };
  const restorable = await restorablePoints(repository, domain, which, disks);
  return error.of(`${error.message}. ${sentence(restorable)}`, { restorable });
}

function sentence(restorable: readonly string[]): string {
  if (restorable.length === 0) return "Points that don't need it: none";
  const older = restorable.length - NAMED;
  const more = older > 0 ? `, and ${older} older` : "";
  return `Points that don't need it: ${restorable.slice(0, NAMED).join(", ")}${more}`;
}
