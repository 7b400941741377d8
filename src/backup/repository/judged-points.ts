import { DamageError } from "../base/errors.js";
import { type RecordedDamage, readDamage } from "./damage-record.js";
import type { DiskManifest, Manifest } from "./manifest.js";
import { hiddenPoints } from "./prune-journal.js";
import { type RehearsalRecord, readRehearsal } from "./rehearsal-record.js";
import type { Repository } from "./repository.js";

/** Why a point can't be restored. */
export interface Obstacle {
  /** The point that is damaged: the point itself, or one that it is based on. */
  readonly point: string;
  /** Undefined if it concerns the point as a whole. */
  readonly disk?: string | undefined;
  readonly message: string;
}

/** A point of a domain, and what keeps it from being restored. */
export interface JudgedPoint {
  readonly id: string;
  /** Undefined if the manifest can't be read. */
  readonly manifest: Manifest | undefined;
  /** Empty: as far as is known, the point can be restored. One for each damaged disk of each point. */
  readonly obstacles: readonly Obstacle[];
  /** Whether its guest came up when that was last tried. */
  readonly rehearsed?: RehearsalRecord | undefined;
}

/**
 * Judges which points of a domain can be restored: by their manifests, by whether their files are there, and
 * by what verifies have found. No image is opened, so damage that no verify has seen isn't known. A prune
 * that publishes meanwhile takes files away, so judge as a reader (`Repository.reading`).
 *
 * @param domain the name of its folder in the repository
 * @param found what was found just now, by the id of the point; other points are judged by their records
 * @returns oldest first
 * @throws the file system's error
 */
export async function judgePoints(
  repository: Repository,
  domain: string,
  found: ReadonlyMap<string, readonly RecordedDamage[]> = new Map(),
): Promise<JudgedPoint[]> {
  const judged: JudgedPoint[] = [];
  const unreadable = new Map<string, string>();
  /** By point and disk. Points come oldest first, so that parents are there before their children. */
  const ofDisks = new Map<string, readonly Obstacle[]>();
  // A running prune has given some up, and until it publishes the kept ones are still based on them.
  const going = await goingPoints(repository, domain);
  for (const id of [...(await repository.pointNames(domain)), ...going].sort()) {
    let manifest: Manifest;
    try {
      manifest = await repository.point(domain, id);
    } catch (error) {
      if (!(error instanceof DamageError)) throw error;
      unreadable.set(id, error.message);
      const obstacles = [{ point: id, message: error.message }];
      if (!going.has(id)) judged.push({ id, manifest: undefined, obstacles });
      continue;
    }
    const own = await ownObstacles(repository, domain, manifest, found.get(id));
    const obstacles = own.filter(({ disk }) => disk === undefined);
    for (const { name, parent } of manifest.disks) {
      const below =
        parent === null ? [] : (ofDisks.get(key(parent, name)) ?? [lost(parent, name, unreadable)]);
      const all = [...own.filter(({ disk }) => disk === name), ...below];
      ofDisks.set(key(id, name), all);
      obstacles.push(...all);
    }
    if (!going.has(id))
      judged.push({ id, manifest, obstacles, rehearsed: await rehearsal(repository, domain, id) });
  }
  return judged;
}

async function rehearsal(
  repository: Repository,
  domain: string,
  id: string,
): Promise<RehearsalRecord | undefined> {
  await using folder = await repository.openPoint(domain, id);
  return await readRehearsal(folder);
}

async function goingPoints(repository: Repository, domain: string): Promise<ReadonlySet<string>> {
  await using folder = await repository.openDomain(domain);
  if (!folder) return new Set();
  // Whoever wrote the journal may have named any number of points.
  const there = new Set(await folder.names());
  return new Set([...(await hiddenPoints(folder))].filter((id) => there.has(id)));
}

/**
 * What is wrong in the point's own folder: files that are missing, and what a verify has found.
 * @param found what was found just now; undefined: what is recorded
 * @throws the file system's error
 */
export async function ownObstacles(
  repository: Repository,
  domain: string,
  { id, disks, files = [] }: Manifest,
  found?: readonly RecordedDamage[],
): Promise<Obstacle[]> {
  await using folder = await repository.openPoint(domain, id);
  const names = new Set(await folder.names());
  const missing = (file: string, disk?: string): Obstacle[] =>
    names.has(file) ? [] : [{ point: id, disk, message: `${file} is missing` }];
  const places = found ?? (await readDamage(folder))?.places ?? [];
  const whole = places.filter(({ disk }) => disk === undefined);
  return [
    ...files.flatMap(({ file }) => missing(file)),
    ...summary(id, undefined, whole),
    ...disks.flatMap((disk) => {
      const lacking = filesOf(disk).flatMap((file) => missing(file, disk.name));
      if (lacking.length > 0) return lacking;
      return summary(
        id,
        disk.name,
        places.filter((each) => each.disk === disk.name),
      );
    }),
  ];
}

function filesOf({ file, map, digests }: DiskManifest): string[] {
  return [file, ...(map ? [map.file] : []), ...(digests ? [digests.file] : [])];
}

/** One obstacle for all damaged places of a disk. */
function summary(point: string, disk: string | undefined, places: readonly RecordedDamage[]): Obstacle[] {
  const [first, ...others] = places;
  if (!first) return [];
  const where = first.guestOffset === undefined ? "" : `guest offset ${first.guestOffset}: `;
  const more = others.length === 0 ? "" : ` (and ${others.length} more)`;
  return [{ point, disk, message: `${where}${first.message}${more}` }];
}

/** For a parent that can't be read, is missing, or doesn't have the disk. */
function lost(point: string, disk: string, unreadable: ReadonlyMap<string, string>): Obstacle {
  return { point, disk, message: unreadable.get(point) ?? "the point or this disk of it is missing" };
}

function key(point: string, disk: string): string {
  return `${point}/${disk}`;
}

/** One line: which disks of which points are damaged, and how. */
export function obstacleText({ point, disk, message }: Obstacle, id: string): string {
  const what = disk === undefined ? "" : `${disk} `;
  if (point === id) return `${what}${disk === undefined ? "" : "is damaged: "}${message}`;
  return `${what}needs point ${point}, which is damaged: ${message}`;
}
