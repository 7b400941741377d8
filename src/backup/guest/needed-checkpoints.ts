import type { Manifest } from "../repository/manifest.js";
import { diskOf } from "../repository/manifest.js";

/**
 * The checkpoints that increments may still start from. For each disk these are the checkpoint of its newest
 * point and that of its last full point, which differentials are based on.
 */
export function neededCheckpoints(points: readonly Manifest[], disks: readonly string[]): Set<string> {
  const needed = new Set<string>();
  for (const name of disks) {
    const ofDisk = points.filter((point) => point.checkpoint && diskOf(point, name));
    const lastFull = ofDisk.findLast((point) => diskOf(point, name)?.mode === "full");
    for (const point of [ofDisk.at(-1), lastFull]) if (point?.checkpoint) needed.add(point.checkpoint.name);
  }
  return needed;
}
