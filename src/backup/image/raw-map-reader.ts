import { z } from "zod";
import { DamageError } from "../base/errors.js";
import { faultsOf } from "../base/json.js";
import { ALL_SUBCLUSTERS, type ClusterRun, clustersIn, type Geometry, SUBCLUSTERS } from "./image.js";
import { type DefinedExtent, MAP_TYPES } from "./raw-map.js";

const LINE = z.object({
  offset: z.int().min(0),
  length: z.int().min(1),
  type: z.literal([MAP_TYPES.data.type, MAP_TYPES.zero.type]),
});

/**
 * Reads a map's lines. Each must be what `mapText` writes, or the same with other spacing.
 * @throws {DamageError} a line is not an extent, or the end is missing
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
    throw new DamageError("E_RAW_MAP", `${where} is not an extent: ${faultsOf(parsed.error)}`);
  }
  const { offset, length, type } = parsed.data;
  return { offset, length, state: type === MAP_TYPES.data.type ? "data" : "zero" };
}

/**
 * Turns a map's extents into runs, for a raw file, where data lies at its guest offset.
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

    // The part of the last cluster past the end of the disk has the state of the byte before the end.
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
