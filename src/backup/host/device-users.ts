/**
 * Who may write to a block device. The locks of QEMU's images don't tell that: libvirt gives each guest a
 * /dev of its own, whose nodes lead to the same devices but have locks of their own.
 *
 *     /dev/vg/web --+                               a lock on one of these nodes
 *                   |--> device 253:2 (dm-2)        says nothing about the other
 *     guest's node -+
 */

import { constants, readFileSync, readlinkSync, statSync } from "node:fs";
import { open, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type BlockDevice, deviceNumberOf, devicesOn, diskUnder } from "./block-device.js";

/** Access modes in a descriptor's flags. */
const ACCESS = 0o3;
const PROC = "/proc";
/** Another program may be looking as we do, which takes it no longer than this. */
const LOOK_MS = 100;

/**
 * Describes all who could write to one of the devices: processes that have it open for writing, or a device
 * that leads to its bytes (its partitions, volumes on it, the disk that it is part of); and the kernel
 * itself, for a mount, swap, a running RAID or an exported target.
 *
 * Not seen are users on other hosts, and processes of other users without the capability CAP_SYS_PTRACE.
 */
export async function writersOf(devices: readonly BlockDevice[]): Promise<string[]> {
  const found: string[] = [];
  const open = new Map<string, string>();
  for (const device of devices) {
    found.push(...(await claimsOf(device)));
    for (const { number } of await relatedTo(device)) open.set(number, device.path);
  }
  return [...new Set([...found, ...(await processesWriting(open))])];
}

async function relatedTo(device: BlockDevice): Promise<BlockDevice[]> {
  const disk = await diskUnder(device.number);
  const found = [...(disk ? [disk] : []), device];
  const add = async ({ number }: BlockDevice): Promise<void> => {
    for (const each of await devicesOn(number)) {
      if (found.some((known) => known.number === each.number)) continue;
      found.push(each);
      await add(each);
    }
  };
  await add(device);
  return found;
}

/**
 * The kernel lets only one user claim a device, and refuses further claims. What is built on a device claims
 * it too, but writes nothing by itself: then that device's own claims count.
 */
async function claimsOf(device: BlockDevice): Promise<string[]> {
  if (!(await isClaimed(device.path))) return [];
  const above = await devicesOn(device.number);
  if (above.length === 0) {
    return [`the system has ${device.path} in use (mounted, swap, RAID, or exported)`];
  }
  const claims: string[] = [];
  for (const each of above) claims.push(...(await claimsOf(each)));
  return claims;
}

async function isClaimed(path: string): Promise<boolean> {
  const { O_RDONLY, O_EXCL, O_NONBLOCK } = constants;
  for (const isLast of [false, true]) {
    try {
      await (await open(path, O_RDONLY | O_EXCL | O_NONBLOCK)).close();
      return false;
    } catch (error) {
      // No node here, or none that this user may open: nothing can be said.
      if ((error as NodeJS.ErrnoException).code !== "EBUSY") return false;
      if (!isLast) await sleep(LOOK_MS);
    }
  }
  return true;
}

/** @param paths the path that messages give for each device number */
async function processesWriting(paths: ReadonlyMap<string, string>): Promise<string[]> {
  const found: string[] = [];
  for (const pid of await readdir(PROC)) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
    const descriptors = await readdir(join(PROC, pid, "fd")).catch(() => []);
    const written = new Set(descriptors.map((fd) => paths.get(writtenBy(pid, fd) ?? "")));
    for (const path of written) if (path !== undefined) found.push(`${await nameOf(pid)} has ${path} open`);
  }
  return found;
}

/** The number of the device that a descriptor is open on for writing; undefined for anything else. */
function writtenBy(pid: string, fd: string): string | undefined {
  const link = join(PROC, pid, "fd", fd);
  try {
    // Only devices are looked at more closely, because a network file system may not answer.
    if (!readlinkSync(link).includes("/dev/")) return undefined;
    const found = statSync(link, { bigint: true });
    if (!found.isBlockDevice()) return undefined;
    const flags = /^flags:\s+([0-7]+)$/m.exec(readFileSync(join(PROC, pid, "fdinfo", fd), "latin1"))?.[1];
    return flags !== undefined && (Number.parseInt(flags, 8) & ACCESS) === 0
      ? undefined
      : deviceNumberOf(found.rdev);
  } catch {
    // It was closed, or its process has ended.
    return undefined;
  }
}

/** `qemu-system-x86 (process 812, which runs the guest web)` */
async function nameOf(pid: string): Promise<string> {
  const read = (file: string): Promise<string> => readFile(join(PROC, pid, file), "utf8").catch(() => "");
  const [command, line] = [(await read("comm")).trim(), await read("cmdline")];
  const guest = /\0-name\0(?:guest=)?([^,\0]+)/.exec(line)?.[1];
  return `${command} (process ${pid}${guest === undefined ? "" : `, which runs the guest ${guest}`})`;
}
