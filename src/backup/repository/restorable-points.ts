import { DamageError } from "../base/errors.js";
import type { Repository } from "./repository.js";

/** What can't be used: a point, or one of its disks. */
export interface Broken {
  readonly point: string;
  /** Left out: all of them. */
  readonly disk?: string | undefined;
}

/** How many are named in a message. */
const NAMED = 5;

/**
 * The points whose disks can be rebuilt without what is broken, as far as manifests tell: newest first.
 * @param disks that each of them has to have; left out: whatever disks it has
 */
export async function restorablePoints(
  repository: Repository,
  domain: string,
  broken: Broken,
  disks?: readonly string[],
): Promise<string[]> {
  const sound = new Set<string>();
  const restorable: string[] = [];
  // Oldest first, and parents are older: whether a parent can be rebuilt is known when its child is looked at.
  for (const point of await repository.points(domain, () => undefined)) {
    for (const { name, parent } of point.disks) {
      const isHit = point.id === broken.point && (broken.disk ?? name) === name;
      if (!isHit && (parent === null || sound.has(`${parent}/${name}`))) sound.add(`${point.id}/${name}`);
    }
    const wanted = disks ?? point.disks.map(({ name }) => name);
    if (wanted.every((name) => sound.has(`${point.id}/${name}`))) restorable.unshift(point.id);
  }
  return restorable;
}

/**
 * A damage, told with what can be restored all the same; other errors stay as they are.
 * @param disks that were to be restored; left out: all
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
