import type { OnDamage } from "../base/damage.js";
import type { PlacedDigestRun } from "../digest/digest-file-reader.js";
import type { ClusterRun, Geometry } from "../image/image.js";
import { RunCursor } from "../image/run-cursor.js";
import type { DigestedRun } from "./checked-image.js";

/** A run of a layer, with the offset of its digests in the digest file, for `Layer.digestsAt`. */
export type LayerRun = DigestedRun & { readonly digestsAt?: number | undefined };

/** What an image and its digest file define together. */
interface Defined {
  readonly geometry: Geometry;
  /** Nothing lies below: clusters that the digest file leaves out read as zeroes. */
  readonly complete: boolean;
  /** Length of one digest in bytes. */
  readonly digestSize: number;
}

/**
 * The runs on which an image and its digest file agree. Both are read side by side, in guest order.
 * @param onDamage called for each stretch where they don't. If it returns, the stretch is left out. The runs
 *   before it have been given out then.
 */
export async function* agreedRuns(
  images: AsyncIterable<readonly ClusterRun[]>,
  digestRuns: AsyncIterable<readonly PlacedDigestRun[]>,
  defined: Defined,
  onDamage: OnDamage,
): AsyncGenerator<readonly LayerRun[]> {
  const { geometry, complete } = defined;
  const image = new RunCursor(images);
  const digest = new RunCursor(digestRuns);
  let block: LayerRun[] = [];
  const taken = (): readonly LayerRun[] => {
    const runs = block;
    block = [];
    return runs;
  };
  const both = [image, digest];
  for (;;) {
    for (const cursor of both) {
      while (!cursor.advance()) {
        if (block.length > 0) yield taken();
        await cursor.more();
      }
    }
    const { run: has } = image;
    const { run: should } = digest;
    if (!has && !should) break;
    const hasAt = has ? image.cluster : Number.POSITIVE_INFINITY;
    const shouldAt = should ? digest.cluster : Number.POSITIVE_INFINITY;
    if (!should || (has && hasAt < shouldAt)) {
      const count = Math.min(image.remaining, shouldAt - hasAt);
      // In a complete layer, clusters that the digest file leaves out read as zeroes.
      const harmless = complete && has?.kind === "zero";
      const message = "the image defines a cluster that the digest file does not have";
      if (!harmless) {
        yield taken();
        onDamage({ message, ...rangeOf(geometry, hasAt, count) });
      }
      image.skip(count);
    } else if (!has || shouldAt < hasAt) {
      const count = Math.min(digest.remaining, hasAt - shouldAt);
      yield taken();
      onDamage({
        message: `the image has lost a cluster of ${should.kind}`,
        ...rangeOf(geometry, shouldAt, count),
      });
      digest.skip(count);
    } else {
      const count = Math.min(image.remaining, digest.remaining);
      const start = digest.cluster - should.cluster;
      if (isSameKind(has, should)) block.push(joined(has, image.cluster, count, should, start, defined));
      else {
        yield taken();
        const message = `the image's table says ${has.kind} where the point has ${should.kind}`;
        onDamage({ message, ...rangeOf(geometry, shouldAt, count) });
      }
      image.skip(count);
      digest.skip(count);
    }
  }
  yield taken();
}

/** Clusters as a range of the disk in bytes, cut off at its end. */
function rangeOf(
  { clusterSize, virtualSize }: Geometry,
  cluster: number,
  count: number,
): { guestOffset: number; length: number } {
  const guestOffset = cluster * clusterSize;
  return { guestOffset, length: Math.min(count * clusterSize, virtualSize - guestOffset) };
}

/**
 * The part of both runs that is `count` clusters long from `cluster` on. It begins `start` clusters after
 * the beginning of `should`.
 */
function joined(
  has: ClusterRun,
  cluster: number,
  count: number,
  should: PlacedDigestRun,
  start: number,
  { geometry, digestSize }: Defined,
): LayerRun {
  if (has.kind === "partial" || should.kind === "partial") {
    const { digestsAt } = should;
    return { ...has, digests: should.kind === "partial" ? should.digests : undefined, digestsAt };
  }
  if (has.kind === "zero" || should.kind === "zero")
    return { kind: "zero", cluster, count, digests: undefined };
  return {
    kind: "data",
    cluster,
    count,
    hostOffset: has.hostOffset + (cluster - has.cluster) * geometry.clusterSize,
    digests: should.digests.subarray(start * digestSize, (start + count) * digestSize),
    digestsAt: should.digestsAt + start * digestSize,
  };
}

function isSameKind(has: ClusterRun, should: PlacedDigestRun): boolean {
  if (has.kind === "partial" && should.kind === "partial") {
    return has.dataMask === should.dataMask && has.zeroMask === should.zeroMask;
  }
  return has.kind === should.kind;
}
