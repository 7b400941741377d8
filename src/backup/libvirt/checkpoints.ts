import type { Manifest } from "../manifest.js";
import { type Checkpoint, parseCheckpoint } from "./checkpoint-xml.js";
import { type DomainRef, hasCode, type Virsh } from "./virsh.js";

/** What the names of a repository's checkpoints begin with: by this alone it knows its own. */
export function checkpointPrefix(repositoryId: string): string {
  return `nbdpull-${repositoryId.slice(0, 8)}-`;
}

/** The name of a checkpoint made at `time`: sorts as they were made. */
export function checkpointName(repositoryId: string, time: Date): string {
  return `${checkpointPrefix(repositoryId)}${time.toISOString().replaceAll(/[-:.]/g, "")}`;
}

/** All checkpoints that libvirt has of a domain, whoever made them. */
export async function readCheckpoints(virsh: Virsh, domain: DomainRef): Promise<Checkpoint[]> {
  const checkpoints: Checkpoint[] = [];
  for (const name of await virsh.checkpointNames(domain)) {
    try {
      checkpoints.push(parseCheckpoint(await virsh.checkpointXml(domain, name)));
    } catch (error) {
      // Deleted since it was listed.
      if (!hasCode(error, "E_NO_CHECKPOINT")) throw error;
    }
  }
  return checkpoints;
}

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
