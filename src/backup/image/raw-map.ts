import type { Extent } from "../base/extent.js";
import { ALL_SUBCLUSTERS, type Geometry, maskStretches } from "./image.js";
import type { StoredRun } from "./run-list.js";

/**
 * What a sparse raw increment defines, as a JSON array with one extent per line, in the form in which
 * `nbdinfo --map --json` prints the context base:allocation:
 *
 *     [
 *     { "offset": 0, "length": 65536, "type": 0, "description": "data"},
 *     { "offset": 131072, "length": 1048576, "type": 3, "description": "hole,zero"}
 *     ]
 *
 *     offset, length   bytes of the guest, multiples of a subcluster (1/32 of the cluster size), or up to the
 *                      end of the disk; ascending, never overlapping
 *     type             0  data: in the raw file, at the same offset
 *                      3  hole,zero: reads as zeroes
 *     (left out)       clean: the parent's bytes
 *
 * Each line is one extent, so writing and reading hold only one extent at a time.
 */
export const MAP_TYPES = {
  data: { type: 0, description: "data" },
  zero: { type: 3, description: "hole,zero" },
} as const;

/** An extent that a map can hold. Clean extents are left out. */
export type DefinedExtent = Extent & { readonly state: "data" | "zero" };

/**
 * Approximate characters per piece of a map's text: a thousand lines cost little more to write than one does.
 */
const PIECE = 64 * 1024;

/** The rest of a line that begins with an extent's place. */
const ENDS = { data: endOfLine("data"), zero: endOfLine("zero") } as const;

function endOfLine(state: DefinedExtent["state"]): string {
  const { type, description } = MAP_TYPES[state];
  return `, "type": ${type}, "description": "${description}"}`;
}

/** The text of a map, in pieces. */
export function* mapText(extents: Iterable<DefinedExtent>): Generator<string> {
  let text = "";
  let separator = "[";
  for (const { offset, length, state } of extents) {
    text += `${separator}\n{ "offset": ${offset}, "length": ${length}${ENDS[state]}`;
    separator = ",";
    if (text.length < PIECE) continue;
    yield text;
    text = "";
  }
  yield `${text}${separator === "[" ? "[" : ""}\n]\n`;
}

/** The extents of runs, cut off at the end of the disk. Neighbours in the same state become one. */
export function* extentsOfRuns(runs: Iterable<StoredRun>, geometry: Geometry): Generator<DefinedExtent> {
  let last: DefinedExtent | undefined;
  for (const run of runs) {
    const { dataMask, zeroMask } = run;
    const isWhole = dataMask === ALL_SUBCLUSTERS || zeroMask === ALL_SUBCLUSTERS;
    for (const next of isWhole ? [wholeRun(run, geometry)] : pieces(run, geometry)) {
      if (last && last.state === next.state && last.offset + last.length === next.offset) {
        last = { ...last, length: last.length + next.length };
        continue;
      }
      if (last) yield last;
      last = next;
    }
  }
  if (last) yield last;
}

function wholeRun({ cluster, count, dataMask }: StoredRun, geometry: Geometry): DefinedExtent {
  const { clusterSize, virtualSize } = geometry;
  const offset = cluster * clusterSize;
  const length = Math.min(count * clusterSize, virtualSize - offset);
  return { offset, length, state: dataMask === 0 ? "zero" : "data" };
}

/** The extents of clusters of which only parts are defined, cluster by cluster. */
function* pieces({ cluster, count, ...masks }: StoredRun, geometry: Geometry): Generator<DefinedExtent> {
  for (let i = 0; i < count; i += 1) {
    yield* subclusterExtents((cluster + i) * geometry.clusterSize, masks, geometry);
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
