import { basename, dirname } from "node:path";
import { DamageError } from "../base/errors.js";
import { shellWord } from "../base/shell-word.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import { timeOf, timeOfPointId } from "./manifest.js";
import { readManifest } from "./read-manifest.js";

/** A point that was made later than now, by its own account. */
interface PointAhead {
  readonly id: string;
  /** In milliseconds since 1970. */
  readonly time: number;
}

/**
 * The points that were made later than now: a clock was wrong when they were made, or is wrong now. Of a
 * point whose manifest can't be read, the id tells the time.
 * @param domain the domain's folder
 */
export async function pointsAhead(
  domain: StoredFolder,
  ids: readonly string[],
  now: Date,
): Promise<PointAhead[]> {
  const ahead: PointAhead[] = [];
  for (const id of ids) {
    const time = await timeIn(domain, id);
    if (time > now.getTime()) ahead.push({ id, time });
  }
  return ahead;
}

/** What is wrong with the times of points that are ahead, and how to mend it. */
export function aheadText(ahead: readonly PointAhead[], now: Date): string {
  const last = ahead.reduce((latest, point) => (point.time > latest.time ? point : latest));
  const others = ahead.length === 1 ? "" : `, and ${ahead.length - 1} more`;
  return `point ${last.id} says that it was made at ${asTime(last.time)}${others}, and it is ${asTime(now.getTime())} now: a clock was wrong then, or is now`;
}

/** The command that dates points anew. */
export function fixClockCommand(domain: StoredFolder): string {
  return `nbdpull points ${shellWord(dirname(domain.path))} ${shellWord(basename(domain.path))} --fix-clock`;
}

async function timeIn(domain: StoredFolder, id: string): Promise<number> {
  try {
    await using folder = await domain.folder(id);
    if (folder) return timeOf(await readManifest(folder, id));
  } catch (error) {
    if (!(error instanceof DamageError)) throw error;
  }
  return timeOfPointId(id);
}

function asTime(time: number): string {
  return new Date(time).toISOString();
}
