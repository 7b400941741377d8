import { damageIn } from "../base/damage.js";
import { Layer } from "../chain/layer.js";
import { type ClusterRun, type Geometry, maskStretches } from "../image/image.js";
import type { DiskManifest, Manifest } from "../repository/manifest.js";
import { timeOf } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";

/**
 * Most cells that a disk is divided into, and most days and points that a map shows. Bound its size and its
 * cost.
 */
const MOST_CELLS = 96;
const MOST_DAYS = 62;
const MOST_POINTS = 500;

/** What was written to a disk on a day, by its increments. */
export interface ChangedDay {
  /** In the local time zone: `2026-11-29`. */
  readonly day: string;
  /** Whether there is a full copy of that day: what was changed since the one before isn't known. */
  readonly full: boolean;
  /** The sum of `cells`. */
  readonly changedBytes: number;
  /** Bytes changed in each cell, by all increments of the day together, and no more than the cell has. */
  readonly cells: readonly number[];
}

/** Where on a disk what was written when. */
export interface ChangeMap {
  readonly disk: string;
  /** The largest that the disk was, in bytes. */
  readonly virtualSize: number;
  /** Bytes of the disk that a cell stands for; the last one may have less. */
  readonly cellBytes: number;
  /** Days that have points, oldest first. */
  readonly days: readonly ChangedDay[];
  /** Older points that are not shown. */
  readonly leftOut: number;
  /** Increments that could not be read, and why. */
  readonly unreadable: readonly { readonly point: string; readonly message: string }[];
}

interface Taken {
  readonly point: Manifest;
  readonly disk: DiskManifest;
}

/**
 * The change map of each disk that the newest point has. Only tables and maps of increments are read: no
 * data, no digests, and nothing of full copies. Call it as a reader (`Repository.reading`).
 * @param folder the name of the domain's folder
 * @param points of the domain, oldest first
 * @throws the file system's error, except for a failing medium; the signal's reason
 */
export async function changeMaps(
  repository: Repository,
  folder: string,
  points: readonly Manifest[],
  signal?: AbortSignal,
): Promise<ChangeMap[]> {
  const maps: ChangeMap[] = [];
  for (const { name } of points.at(-1)?.disks ?? []) {
    const all = points.flatMap((point) => {
      const disk = point.disks.find((each) => each.name === name);
      return disk ? [{ point, disk }] : [];
    });
    const shown = newestOf(all);
    maps.push(await mapOf(repository, folder, name, shown, all.length - shown.length, signal));
  }
  return maps;
}

function newestOf(all: readonly Taken[]): readonly Taken[] {
  const newest = all.slice(-MOST_POINTS);
  const days = [...new Set(newest.map(({ point }) => dayOf(point)))].sort().slice(-MOST_DAYS);
  return newest.filter(({ point }) => days.includes(dayOf(point)));
}

async function mapOf(
  repository: Repository,
  folder: string,
  disk: string,
  shown: readonly Taken[],
  leftOut: number,
  signal: AbortSignal | undefined,
): Promise<ChangeMap> {
  const virtualSize = Math.max(0, ...shown.map((each) => each.disk.virtualSize));
  const clusterSize = Math.max(1, ...shown.map((each) => each.disk.clusterSize));
  // Whole clusters, so that no cell begins inside one.
  const cellBytes = Math.max(1, Math.ceil(virtualSize / clusterSize / MOST_CELLS)) * clusterSize;
  const unreadable: { point: string; message: string }[] = [];
  const days = new Map<string, { full: boolean; cells: number[] }>();
  for (const taken of shown) {
    signal?.throwIfAborted();
    const { point } = taken;
    const cells = Array.from({ length: Math.ceil(virtualSize / cellBytes) }, () => 0);
    const day = days.get(dayOf(point)) ?? { full: false, cells };
    days.set(dayOf(point), day);
    if (taken.disk.mode === "full") day.full = true;
    else {
      const message = await addChanges(repository, folder, taken, { cellBytes, virtualSize }, day.cells);
      if (message !== undefined) unreadable.push({ point: point.id, message });
    }
  }
  return {
    disk,
    virtualSize,
    cellBytes,
    days: [...days.entries()]
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([day, { full, cells }]) => {
        const capped = cells.map((bytes, i) => Math.min(bytes, cellBytes, virtualSize - i * cellBytes));
        return { day, full, changedBytes: capped.reduce((sum, bytes) => sum + bytes, 0), cells: capped };
      }),
    leftOut,
    unreadable,
  };
}

/** @returns why the increment can't be read, or not all of it */
async function addChanges(
  repository: Repository,
  folder: string,
  { point, disk }: Taken,
  size: { readonly cellBytes: number; readonly virtualSize: number },
  cells: number[],
): Promise<string | undefined> {
  let found: string | undefined;
  try {
    await using layer = await Layer.open(await repository.openPoint(folder, point.id), point.id, disk);
    for await (const run of layer.imageRuns(({ message }) => {
      found ??= message;
    })) {
      addRun(cells, run, layer.geometry, size);
    }
  } catch (error) {
    const message = damageIn(error);
    if (message === undefined) throw error;
    found ??= message;
  }
  return found;
}

/** Adds what a run defines to the cells that it lies in; zeroes were written as well. */
export function addRun(
  cells: number[],
  run: ClusterRun,
  { clusterSize }: Pick<Geometry, "clusterSize">,
  { cellBytes, virtualSize }: { readonly cellBytes: number; readonly virtualSize: number },
): void {
  const begin = run.cluster * clusterSize;
  const stretches =
    run.kind === "partial"
      ? maskStretches(run.dataMask | run.zeroMask, clusterSize)
      : [{ offset: 0, length: run.count * clusterSize }];
  for (const stretch of stretches) {
    const end = Math.min(begin + stretch.offset + stretch.length, virtualSize);
    for (let at = begin + stretch.offset; at < end; ) {
      const cell = Math.floor(at / cellBytes);
      const stop = Math.min(end, (cell + 1) * cellBytes);
      cells[cell] = (cells[cell] ?? 0) + stop - at;
      at = stop;
    }
  }
}

/** The day of a point in the local time zone. */
function dayOf(point: Manifest): string {
  return new Date(timeOf(point)).toLocaleDateString("sv-SE");
}
