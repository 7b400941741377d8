import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { hasCode } from "../base/errors.js";
import { together } from "../base/in-parallel.js";
import { withoutBitmap } from "./checkpoint-edit.js";
import { type Checkpoint, parseCheckpoint } from "./checkpoint-xml.js";
import type { DomainRef, Virsh } from "./virsh.js";

/**
 * The prefix of the names of a repository's checkpoints. A repository recognizes its checkpoints by it alone.
 */
export function checkpointPrefix(repositoryId: string): string {
  return `nbdpull-${repositoryId.slice(0, 8)}-`;
}

/** The first eight digits of the id of the repository that a checkpoint belongs to; undefined: it is none's. */
export function checkpointIdOf(name: string): string | undefined {
  return /^nbdpull-([0-9a-f]{8})-/.exec(name)?.[1];
}

/** The name of a checkpoint created at `time`. Names sort in order of creation. */
export function checkpointName(repositoryId: string, time: Date): string {
  return `${checkpointPrefix(repositoryId)}${time.toISOString().replaceAll(/[-:.]/g, "")}`;
}

/** All checkpoints that libvirt has of a domain, including those of other programs. */
export async function readCheckpoints(virsh: Virsh, domain: DomainRef): Promise<Checkpoint[]> {
  const read = async (name: string): Promise<Checkpoint[]> => {
    try {
      return [parseCheckpoint(await virsh.checkpointXml(domain, name))];
    } catch (error) {
      // Deleted since it was listed.
      if (hasCode(error, "E_NO_CHECKPOINT")) return [];
      throw error;
    }
  };
  const names = await virsh.checkpointNames(domain);
  return (await together(...names.map(read))).flat();
}

/**
 * Deletes a checkpoint and its bitmaps; the domain must run. libvirt refuses if one of the bitmaps is missing
 * (QEMU died before it stored the bitmap, or the disk has another image). That bitmap is then removed from
 * libvirt's record, so that the others don't stay in their images for ever.
 */
export async function deleteCheckpoint(virsh: Virsh, domain: DomainRef, name: string): Promise<void> {
  const forgotten = new Set<string>();
  for (;;) {
    try {
      return await virsh.deleteCheckpoint(domain, name);
    } catch (error) {
      const disk = missingBitmap(error);
      if (disk === undefined || forgotten.has(disk)) throw error;
      forgotten.add(disk);
      if (!(await forgetBitmap(virsh, domain, name, disk))) return;
    }
  }
}

/** The disk for which libvirt found no bitmap, if that is the error. */
function missingBitmap(error: unknown): string | undefined {
  if (!hasCode(error, "E_VIRSH") || !(error instanceof Error)) return undefined;
  return /bitmap '[^']*' not found in backing chain of '([^']*)'/.exec(error.message)?.[1];
}

/** @returns false if no other bitmap was left and the checkpoint is gone */
async function forgetBitmap(virsh: Virsh, domain: DomainRef, name: string, disk: string): Promise<boolean> {
  const xml = withoutBitmap(
    await virsh.run("checkpoint-dumpxml", domain, [`--checkpointname=${name}`]),
    disk,
  );
  const folder = await mkdtemp(join(tmpdir(), "nbdpull-"));
  try {
    const file = join(folder, "checkpoint.xml");
    if (xml !== undefined) await writeFile(file, xml);
    await virsh.deleteCheckpoint(domain, name, { metadata: true });
    if (xml !== undefined) await virsh.run("checkpoint-create", domain, [`--xmlfile=${file}`, "--redefine"]);
    return xml !== undefined;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
