import type { OnDamage } from "../base/damage.js";
import { slotsOf } from "../image/image.js";
import type { DigestedRun } from "./checked-image.js";
import type { Layer } from "./layer.js";

/**
 * The runs of a layer whose bytes have to be read to prove all of it. In a qcow2 image the tables say what is
 * zero. In a raw image the bytes of zero runs have to be read as well (`CheckedImage.expectZeroes`), those of
 * zero subclusters (`expectZeroSubclusters`), also where a cluster stores nothing else, and in a full one those
 * of gaps.
 * @throws {DamageError} the digest file or the map of a raw increment is damaged
 */
export async function* storedRuns(layer: Layer, onDamage: OnDamage): AsyncGenerator<DigestedRun> {
  if (layer.disk.format !== "raw") {
    for await (const run of layer.runs(onDamage)) if (slotsOf(run) > 0) yield run;
    return;
  }
  const { clusterSize, virtualSize } = layer.geometry;
  let next = 0;
  const gapUpTo = function* (cluster: number): Generator<DigestedRun> {
    const count = cluster - next;
    if (layer.complete && count > 0) yield { kind: "zero", cluster: next, count, digests: undefined };
  };
  for await (const run of layer.runs(onDamage)) {
    yield* gapUpTo(run.cluster);
    yield run;
    next = run.cluster + run.count;
  }
  yield* gapUpTo(Math.ceil(virtualSize / clusterSize));
}
