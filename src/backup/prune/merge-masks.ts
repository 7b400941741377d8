import type { Piece } from "../chain/overlay.js";
import { ALL_SUBCLUSTERS, type Geometry, SUBCLUSTERS } from "../image/image.js";
import { touched } from "./merge-walk.js";

/** What the pieces of a cluster make of its subclusters. */
export function masksOf(
  pieces: readonly Piece[],
  start: number,
  { clusterSize, virtualSize }: Geometry,
  complete: boolean,
): { dataMask: number; zeroMask: number; blended: boolean } {
  const of = (state: Piece["state"]): number =>
    touched(
      pieces.filter((piece) => piece.state === state),
      start,
      clusterSize,
    );
  const [data, zero, clean] = [of("data"), of("zero"), of("clean")];
  if ((data & clean) !== 0) throw new RangeError(`clean and data share a subcluster at byte ${start}`);
  // Behind the end of the disk nothing can be clean.
  const behind = subclustersFrom(virtualSize - start, clusterSize);
  const defined = complete ? ~data : (zero | (clean === 0 ? behind : 0)) & ~data;
  const dataMask = (data | (zero === 0 && clean === 0 ? behind : 0)) >>> 0;
  return { dataMask, zeroMask: (defined & ~dataMask) >>> 0, blended: (data & zero) !== 0 };
}

/** The subclusters that begin at or behind a byte of the cluster. */
function subclustersFrom(byte: number, clusterSize: number): number {
  const first = Math.ceil(byte / (clusterSize / SUBCLUSTERS));
  return first >= SUBCLUSTERS ? 0 : (ALL_SUBCLUSTERS << first) >>> 0;
}
