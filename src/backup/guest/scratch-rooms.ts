import { dirname } from "node:path/posix";
import type { Ssh } from "../host/ssh.js";
import { type BackupJob, exportedDisks } from "../libvirt/documents/job-xml.js";
import type { ScratchRoom } from "./scratch-thresholds.js";

/**
 * Where a job's scratch images find their room, as far as QEMU's thresholds can watch it: each device, and
 * the file systems of QEMU's host that are asked for their room by ssh. Files on this host are looked at by
 * `whileScratchLasts` itself. A libvirt older than 7 gives images no index, so they have no threshold.
 *
 * @param ssh to QEMU's host; undefined: that is this host, or nothing but libvirt is reached there
 * @param before the bytes that were free in the job's folder there before it began
 */
export function scratchRooms(
  job: BackupJob,
  ssh: Ssh | undefined,
  before?: Promise<number>,
): readonly ScratchRoom[] {
  const images = exportedDisks(job).flatMap(({ name: target, index, scratch }) =>
    scratch && index !== undefined ? [{ target, index, ...scratch }] : [],
  );
  const devices = images.filter(({ type }) => type === "block");
  const rooms: ScratchRoom[] = devices.map((image) => ({ path: image.path, images: [image] }));
  if (!ssh) return rooms;
  const files = images.filter(({ type }) => type === "file");
  for (const path of new Set(files.map((file) => dirname(file.path)))) {
    const there = files.filter((file) => dirname(file.path) === path);
    rooms.push({ path, images: there, folder: { free: () => freeBytesThere(ssh, path), before } });
  }
  return rooms;
}

/**
 * Bytes that an ordinary user can still write to that folder of another host.
 * @throws as {@link Ssh.run} does
 */
export async function freeBytesThere(ssh: Ssh, folder: string): Promise<number> {
  const [blocks, size] = (await ssh.run(`stat -f -c '%a %S' -- "$folder"`, { folder })).trim().split(" ");
  return Number(blocks) * Number(size);
}
