/** What the kernel of this machine says about a block device, in sysfs. */
import { constants } from "node:fs";
import { open, readdir, readFile, realpath, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { deviceNumbers, isMissing } from "./durable-files.js";

/** Fields of a device's `stat` file, by the kernel's Documentation/block/stat.rst. */
const SECTORS_WRITTEN = 6;
const SECTORS_DISCARDED = 13;

/** A block device of this machine. All nodes that lead to the same device have the same number. */
export interface BlockDevice {
  readonly path: string;
  /** The kernel's number: `8:1` is sda1. */
  readonly number: string;
}

/** @returns undefined if `path` leads to something else */
export async function blockDeviceAt(path: string): Promise<BlockDevice | undefined> {
  const found = await stat(path, { bigint: true });
  return found.isBlockDevice() ? { path, number: deviceNumberOf(found.rdev) } : undefined;
}

/** @param rdev the field of a device node's `stat` */
export function deviceNumberOf(rdev: bigint): string {
  const { major, minor } = deviceNumbers(rdev);
  return `${major}:${minor}`;
}

/** The kernel's folder about a device. */
export function kernelFolderOf(number: string): string {
  return join("/sys/dev/block", number);
}

/**
 * A string that changes with every write and discard that reaches the device, whichever node it came by, and
 * if the device gets another size or another medium. Flushes the device first: what is still in the page
 * cache counts as written only afterwards.
 */
export async function deviceState({ path, number }: BlockDevice): Promise<string> {
  await using device = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  await device.sync();
  const folder = kernelFolderOf(number);
  const counts = (await readFile(join(folder, "stat"), "latin1")).trim().split(/\s+/);
  const size = await readFile(join(folder, "size"), "latin1");
  const medium = await readIfThere(join(folder, "diskseq"));
  return [medium, size, counts[SECTORS_WRITTEN], counts[SECTORS_DISCARDED]].join(" ").replaceAll("\n", "");
}

/** Whether the kernel counts what is written to the device; an administrator can switch that off. */
export async function countsWrites({ number }: BlockDevice): Promise<boolean> {
  const folder = await realpath(kernelFolderOf(number));
  const disk = (await isPartition(folder)) ? dirname(folder) : folder;
  return (await readIfThere(join(disk, "queue", "iostats")))?.trim() !== "0";
}

/**
 * The devices that lead to bytes of this one: its partitions, and what is built on it or them (LVM, RAID).
 */
export async function devicesOn(number: string): Promise<BlockDevice[]> {
  const folder = await realpath(kernelFolderOf(number));
  const holders = await namesIn(join(folder, "holders"));
  const folders = holders.map((name) => join(folder, "holders", name));
  for (const name of await namesIn(folder)) {
    if (await isPartition(join(folder, name))) folders.push(join(folder, name));
  }
  return await Promise.all(folders.map(deviceOf));
}

/** The disk that the device is a partition of; undefined if it is none. */
export async function diskUnder(number: string): Promise<BlockDevice | undefined> {
  const folder = await realpath(kernelFolderOf(number));
  return (await isPartition(folder)) ? await deviceOf(dirname(folder)) : undefined;
}

async function deviceOf(folder: string): Promise<BlockDevice> {
  const number = (await readFile(join(folder, "dev"), "latin1")).trim();
  const name = /^DEVNAME=(.*)$/m.exec(await readFile(join(folder, "uevent"), "latin1"))?.[1] ?? number;
  return { path: join("/dev", name), number };
}

async function isPartition(folder: string): Promise<boolean> {
  return (await readIfThere(join(folder, "partition"))) !== undefined;
}

async function readIfThere(path: string): Promise<string | undefined> {
  return await readFile(path, "latin1").catch((error: unknown) => {
    // Most names beside a partition are those of files.
    if (isMissing(error) || (error as NodeJS.ErrnoException).code === "ENOTDIR") return undefined;
    throw error;
  });
}

async function namesIn(folder: string): Promise<string[]> {
  return await readdir(folder).catch((error: unknown) => {
    if (isMissing(error)) return [];
    throw error;
  });
}
