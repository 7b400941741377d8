import { hasCode } from "../base/errors.js";
import { allOrNone } from "../base/in-parallel.js";
import { withoutBitmap } from "./documents/checkpoint-edit.js";
import { type Checkpoint, parseCheckpoint } from "./documents/checkpoint-xml.js";
import type { DomainRef, Libvirt } from "./libvirt.js";
import { errorNumberOf, saidIn } from "./libvirt-errors.js";
import { isNamedIn } from "./named-in.js";
import { NUMBER } from "./rpc/errors.js";

/**
 * The prefix of the names of a repository's checkpoints. A repository recognizes its checkpoints by it alone.
 */
export function checkpointPrefix(repositoryId: string): string {
  return `nbdpull-${repositoryId.slice(0, 8)}-`;
}

/**
 * The first eight digits of the id of the repository that a checkpoint belongs to; undefined: it is none's.
 */
export function checkpointIdOf(name: string): string | undefined {
  return /^nbdpull-([0-9a-f]{8})-/.exec(name)?.[1];
}

/** The name of a checkpoint created at `time`. Names sort in order of creation. */
export function checkpointName(repositoryId: string, time: Date): string {
  return `${checkpointPrefix(repositoryId)}${time.toISOString().replaceAll(/[-:.]/g, "")}`;
}

/** As many as libvirt answers at a time: who stands further behind has less time for its answer. */
const READ_AT_ONCE = 4;

/** All checkpoints that libvirt has of a domain, including those of other programs. */
export async function readCheckpoints(libvirt: Libvirt, domain: DomainRef): Promise<Checkpoint[]> {
  const read = async (name: string): Promise<Checkpoint[]> => {
    try {
      return [parseCheckpoint(await libvirt.checkpointXml(domain, name))];
    } catch (error) {
      // Deleted since it was listed.
      if (hasCode(error, "E_NO_CHECKPOINT")) return [];
      throw error;
    }
  };
  const names = await libvirt.checkpointNames(domain);
  return (await allOrNone(names, READ_AT_ONCE, undefined, read)).flat();
}

/**
 * Deletes a checkpoint and its bitmaps; the domain must run. libvirt refuses if one of the bitmaps is missing
 * (QEMU died before it stored the bitmap, or the disk has another image). That bitmap is then removed from
 * libvirt's record, so that the others don't stay in their images for ever.
 */
export async function deleteCheckpoint(libvirt: Libvirt, domain: DomainRef, name: string): Promise<void> {
  const forgotten = new Set<string>();
  for (;;) {
    try {
      return await libvirt.deleteCheckpoint(domain, name);
    } catch (error) {
      // If that can't be told either, what libvirt refused counts.
      const disk = await missingBitmap(libvirt, domain, name, error).catch(() => undefined);
      if (disk === undefined || forgotten.has(disk)) throw error;
      forgotten.add(disk);
      if (!(await forgetBitmap(libvirt, domain, name, disk))) return;
    }
  }
}

/**
 * The disk for which libvirt found no bitmap, if that is the error: libvirt 9 says `bitmap 'CHECKPOINT' not
 * found in backing chain of 'DISK'`, in the language of its host, and by a number that has many meanings. In
 * another language that is told by the names in it.
 */
async function missingBitmap(
  libvirt: Libvirt,
  domain: DomainRef,
  name: string,
  error: unknown,
): Promise<string | undefined> {
  if (!hasCode(error, "E_LIBVIRT_REFUSED") || errorNumberOf(error) !== NUMBER.internal) return undefined;
  const said = saidIn(error) ?? "";
  const [, disk] = /bitmap '[^']*' not found in backing chain of '([^']*)'/.exec(said) ?? [];
  if (disk !== undefined) return disk;
  // `unable to execute QEMU command 'transaction': …`
  if (said.includes("QEMU")) return undefined;
  const { disks } = parseCheckpoint(await libvirt.checkpointXml(domain, name));
  const meant = disks.filter(
    (each) => each.bitmap !== undefined && isNamedIn(said, each.bitmap) && isNamedIn(said, each.name),
  );
  return meant.length === 1 ? meant[0]?.name : undefined;
}

/** @returns false if no other bitmap was left and the checkpoint is gone */
async function forgetBitmap(
  libvirt: Libvirt,
  domain: DomainRef,
  name: string,
  disk: string,
): Promise<boolean> {
  const xml = withoutBitmap(await libvirt.checkpointXml(domain, name, { whole: true }), disk);
  await libvirt.deleteCheckpoint(domain, name, { metadata: true });
  if (xml === undefined) return false;
  await libvirt.redefineCheckpoint(domain, xml);
  return true;
}
