import type { Manifest } from "../repository/manifest.js";

/**
 * The checkpoints that increments may still start from: for each disk that of its newest point, and that of its last full
 * one, on which differentials stand.
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

function diskOf(point: Manifest, name: string): Manifest["disks"][number] | undefined {
  return point.disks.find((disk) => disk.name === name);
}
