import { z } from "zod";
import { DamageError } from "../errors.js";
import type { Extent } from "../extent.js";
import {
  ALL_SUBCLUSTERS,
  type ClusterRun,
  clustersIn,
  type Geometry,
  maskStretches,
  SUBCLUSTERS,
} from "./image.js";
import type { StoredRun } from "./run-list.js";

/**
 * What a sparse raw increment defines, as a JSON array with one extent a line, as `nbdinfo --map --json` prints
 * the context base:allocation:
 *
 *     [
 *     { "offset": 0, "length": 65536, "type": 0, "description": "data"},
 *     { "offset": 131072, "length": 1048576, "type": 3, "description": "hole,zero"}
 *     ]
 *
 *     offset, length   bytes of the guest, multiples of a subcluster (1/32 of the cluster size), or up to the end
 *                      of the disk; ascending, never overlapping
 *     type             0  data: in the raw file, at the same offset
 *                      3  hole,zero: reads as zeroes
 *     (left out)       clean: the parent's bytes
 *
 * Because a line is an extent, neither writing nor reading has to hold more than one of them.
 */
const TYPES = {
  data: { type: 0, description: "data" },
  zero: { type: 3, description: "hole,zero" },
} as const;

const LINE = z.object({
  offset: z.int().min(0),
  length: z.int().min(1),
  type: z.literal([TYPES.data.type, TYPES.zero.type]),
});

/** An extent that a map can hold: what is clean is left out. */
export type DefinedExtent = Extent & { readonly state: "data" | "zero" };

/** The text of a map, in pieces. */
export function* mapText(extents: Iterable<DefinedExtent>): Generator<string> {
  let separator = "[";
  for (const { offset, length, state } of extents) {
    const { type, description } = TYPES[state];
    yield `${separator}\n{ "offset": ${offset}, "length": ${length}, "type": ${type}, "description": "${description}"}`;
    separator = ",";
  }
  yield separator === "[" ? "[\n]\n" : "\n]\n";
}

/**
 * Reads a map's lines; each must be what `mapText` writes, or the same as other programs space it.
 * @throws {DamageError} a line is no extent, or the end is missing
 */
export async function* parseMap(lines: AsyncIterable<string>, path: string): AsyncGenerator<DefinedExtent> {
  let number = 0;
  let state: "before" | "inside" | "after" = "before";
  for await (const line of lines) {
    number += 1;
    const text = line.trim();
    if (text === "") continue;
    if (state === "before" && text === "[") state = "inside";
    else if (state === "inside" && text === "]") state = "after";
    else if (state === "inside") yield parseLine(text, `line ${number} of ${path}`);
    else throw damagedMap(path, `line ${number} is outside the array`);
  }
  if (state !== "after") throw damagedMap(path, `it ends after line ${number}, before its array does`);
}

function parseLine(text: string, where: string): DefinedExtent {
  let value: unknown;
  try {
    value = JSON.parse(text.endsWith(",") ? text.slice(0, -1) : text);
  } catch (cause) {
    throw new DamageError("E_RAW_MAP", `${where} is not an extent in JSON`, { cause });
  }
  const parsed = LINE.safeParse(value);
  if (!parsed.success) {
    throw new DamageError("E_RAW_MAP", `${where} is not an extent: ${z.prettifyError(parsed.error)}`);
  }
  const { offset, length, type } = parsed.data;
  return { offset, length, state: type === TYPES.data.type ? "data" : "zero" };
}

/** The extents of runs, neighbours in the same state as one, cut off at the end of the disk. */
export function* extentsOfRuns(runs: Iterable<StoredRun>, geometry: Geometry): Generator<DefinedExtent> {
  let last: DefinedExtent | undefined;
  for (const next of pieces(runs, geometry)) {
    if (last && last.state === next.state && last.offset + last.length === next.offset) {
      last = { ...last, length: last.length + next.length };
      continue;
    }
    if (last) yield last;
    last = next;
  }
  if (last) yield last;
}

function* pieces(runs: Iterable<StoredRun>, geometry: Geometry): Generator<DefinedExtent> {
  const { clusterSize, virtualSize } = geometry;
  for (const { cluster, count, dataMask, zeroMask } of runs) {
    const whole = dataMask === ALL_SUBCLUSTERS || zeroMask === ALL_SUBCLUSTERS;
    const first = cluster * clusterSize;
    if (whole) {
      const length = Math.min(count * clusterSize, virtualSize - first);
      yield { offset: first, length, state: dataMask === 0 ? "zero" : "data" };
      continue;
    }
    for (let i = 0; i < count; i += 1) {
      const offset = first + i * clusterSize;
      yield* subclusterExtents(offset, { dataMask, zeroMask }, geometry);
    }
  }
}

function* subclusterExtents(
  clusterOffset: number,
  { dataMask, zeroMask }: { readonly dataMask: number; readonly zeroMask: number },
  { clusterSize, virtualSize }: Geometry,
): Generator<DefinedExtent> {
  const data = maskStretches(dataMask, clusterSize).map((stretch) => ({
    ...stretch,
    state: "data" as const,
  }));
  const zero = maskStretches(zeroMask, clusterSize).map((stretch) => ({
    ...stretch,
    state: "zero" as const,
  }));
  for (const stretch of [...data, ...zero].sort((a, b) => a.offset - b.offset)) {
    const offset = clusterOffset + stretch.offset;
    const length = Math.min(stretch.length, virtualSize - offset);
    if (length > 0) yield { offset, length, state: stretch.state };
  }
}

/**
 * The runs that a map's extents come to, for a raw file, where data lies at its guest offset.
 * @throws {DamageError} the extents overlap, leave the disk, or begin or end inside a subcluster
 */
export async function* runsOfExtents(
  extents: AsyncIterable<DefinedExtent>,
  geometry: Geometry,
  path: string,
): AsyncGenerator<ClusterRun> {
  const { clusterSize, virtualSize } = geometry;
  const subclusterSize = clusterSize / SUBCLUSTERS;
  /** A cluster that several extents share. */
  let shared: { cluster: number; data: number; zero: number } | undefined;
  let previousEnd = 0;
  for await (const extent of extents) {
    const extentEnd = extent.offset + extent.length;
    const aligned =
      extent.offset % subclusterSize === 0 && (extentEnd % subclusterSize === 0 || extentEnd === virtualSize);
    if (extent.offset < previousEnd || extentEnd > virtualSize || !aligned) {
      throw damagedMap(path, `its extent of ${extent.length} bytes at ${extent.offset} can't be there`);
    }
    previousEnd = extentEnd;

    // What the last cluster has past the end of the disk goes with the byte before the end.
    const end = extentEnd === virtualSize ? clustersIn(geometry) * clusterSize : extentEnd;
    for (let { offset } = extent; offset < end; ) {
      const cluster = Math.floor(offset / clusterSize);
      const start = cluster * clusterSize;
      if (shared && shared.cluster !== cluster) {
        yield sharedRun(shared, clusterSize);
        shared = undefined;
      }
      const whole = Math.floor(end / clusterSize) - cluster;
      if (offset === start && whole > 0) {
        yield wholeRun(extent.state, cluster, whole, clusterSize);
        offset += whole * clusterSize;
        continue;
      }
      const stop = Math.min(end, start + clusterSize);
      shared ??= { cluster, data: 0, zero: 0 };
      shared[extent.state] |= bits((offset - start) / subclusterSize, (stop - start) / subclusterSize);
      offset = stop;
    }
  }
  if (shared) yield sharedRun(shared, clusterSize);
}

function wholeRun(state: "data" | "zero", cluster: number, count: number, clusterSize: number): ClusterRun {
  if (state === "zero") return { kind: "zero", cluster, count };
  return { kind: "data", cluster, count, hostOffset: cluster * clusterSize };
}

function sharedRun(
  { cluster, data, zero }: { readonly cluster: number; readonly data: number; readonly zero: number },
  clusterSize: number,
): ClusterRun {
  const dataMask = data >>> 0;
  const zeroMask = zero >>> 0;
  if (dataMask === ALL_SUBCLUSTERS) return wholeRun("data", cluster, 1, clusterSize);
  if (zeroMask === ALL_SUBCLUSTERS) return wholeRun("zero", cluster, 1, clusterSize);
  const hostOffset = dataMask === 0 ? 0 : cluster * clusterSize;
  return { kind: "partial", cluster, count: 1, hostOffset, dataMask, zeroMask };
}

/** Bits `from` up to, but not including, `to`. */
function bits(from: number, to: number): number {
  return (ALL_SUBCLUSTERS >>> (SUBCLUSTERS - (to - from))) << from;
}

export function damagedMap(path: string, what: string): DamageError {
  return new DamageError("E_RAW_MAP", `the map ${path} is damaged: ${what}`, { details: { path } });
}
