/** What a backup has to know of a disk before it plans: its size, and whether its image can keep bitmaps. */
import { constants } from "node:fs";
import { open, stat } from "node:fs/promises";
import { hasCode, messageOf } from "../base/errors.js";
import { ScriptError, type Ssh } from "../host/ssh.js";
import type { DomainDefinition, DomainDisk } from "../libvirt/documents/domain-xml.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import type { GuestDisk } from "./plan-disk.js";
import { volumeOf } from "./volume-of.js";

/** Reads the version of the qcow2 image at a path on the hypervisor; undefined if it can't. */
type ReadVersion = (path: string) => Promise<number | undefined>;

/** A qcow2 image begins with these and its version, four bytes each. */
const MAGIC = "514649fb";
const HEAD_BYTES = 8;

/**
 * @param domain running or off
 * @param readVersion undefined: the image's version stays unknown
 * @throws {PreconditionError} `E_NO_VOLUME`: the disk is a volume that libvirt doesn't find, and the domain
 *   is off
 * @throws as methods of `Libvirt` do
 */
export async function lookAtDisk(
  libvirt: Libvirt,
  domain: DomainDefinition,
  disk: DomainDisk,
  readVersion: ReadVersion | undefined,
): Promise<GuestDisk> {
  const { target: name, format = "raw" } = disk;
  const isRunning = domain.id !== undefined;
  // A volume of a running domain may be unknown to its pool by now: QEMU has it open all the same.
  const volume = await volumeOf(libvirt, domain, disk).catch((error: unknown) => {
    if (isRunning && hasCode(error, "E_NO_VOLUME")) return undefined;
    throw error;
  });
  const path = volume?.path ?? disk.source;
  // libvirt can't tell the size of a disk that is a volume while the domain is off.
  const known = isRunning ? undefined : volume?.capacity;
  const size = known ?? (await libvirt.diskSize(domain, name));
  const version = format === "qcow2" && path !== undefined ? await readVersion?.(path) : undefined;
  return { name, format, size, version, path };
}

/** The version of an image on this host. */
export const versionHere: ReadVersion = async (path) => {
  try {
    const found = await stat(path);
    // Opening another kind of device can have effects.
    if (!found.isFile() && !found.isBlockDevice()) return undefined;
    await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const { buffer, bytesRead } = await file.read(Buffer.alloc(HEAD_BYTES), 0, HEAD_BYTES, 0);
    return versionIn(buffer.toString("hex", 0, bytesRead));
  } catch {
    return undefined;
  }
};

/** The version of an image on another host; takes a connection for each. */
export function versionThere(ssh: Ssh): ReadVersion {
  return async (path) => {
    try {
      const printed = await ssh.run(`head -c ${HEAD_BYTES} <"$path" | od -An -tx1`, { path });
      return versionIn(printed.replaceAll(/\s/g, ""));
    } catch (error) {
      if (error instanceof ScriptError) return undefined;
      throw error;
    }
  };
}

/** @param head the first bytes of a file, in hexadecimal */
function versionIn(head: string): number | undefined {
  const isQcow2 = head.startsWith(MAGIC) && head.length === 2 * HEAD_BYTES;
  return isQcow2 ? Number.parseInt(head.slice(MAGIC.length), 16) : undefined;
}

/**
 * The disks, if the job could not begin because QEMU can't store a bitmap in a qcow2 image of version 2: now
 * with all versions. One that still can't be read is taken for such an image.
 * @returns undefined if that is not the error, or no image can be the reason
 */
export async function withOldQcow2(
  error: unknown,
  disks: readonly GuestDisk[],
  readVersion: ReadVersion,
): Promise<readonly GuestDisk[] | undefined> {
  if (!hasCode(error, "E_LIBVIRT_REFUSED") || !/bitmaps in qcow2 v2 files/.test(messageOf(error)))
    return undefined;
  const look = async (disk: GuestDisk): Promise<GuestDisk> => {
    if (disk.format !== "qcow2" || disk.version !== undefined) return disk;
    const version = disk.path === undefined ? undefined : await readVersion(disk.path);
    return { ...disk, version: version ?? 2 };
  };
  const known = await Promise.all(disks.map(look));
  const isNew = known.some(({ version }, index) => version === 2 && disks[index]?.version !== 2);
  return isNew ? known : undefined;
}
