/**
 * What a backup needs of the machine it runs on, and of other hosts through ssh. Read this file first: it
 * makes files and folders durable. Then read `publish.ts`, which gives finished files their final names, with
 * `new-files.ts` (a job's files are all kept or all removed) and `qemu-locks.ts` (is a QEMU writing to a
 * file). `block-device.ts` is what the kernel says of a device, and `device-users.ts` who may write to it.
 * `trusted-file.ts` opens files in folders that others can change. `listen-address.ts` and
 * `private-socket.ts` are for servers; `ssh.ts` and `ssh-forward.ts` reach other hosts.
 *
 * Nothing here reads what is in an image, speaks NBD or calls libvirt, and nothing here knows repositories.
 */

import { lstatSync } from "node:fs";
import { lstat, mkdir, open } from "node:fs/promises";
import { dirname, resolve } from "node:path";

/** Flushes a folder, so that the names in it are durable. */
export async function syncFolder(path: string): Promise<void> {
  await syncFile(path);
}

/** Flushes a file, so that its content is durable. */
export async function syncFile(path: string): Promise<void> {
  await using file = await open(path, "r");
  await file.sync();
}

/**
 * Creates a folder and its missing parents, for their owner only. Their names are durable when this returns.
 * @returns the path of the topmost folder created; undefined if none was missing
 */
export async function makeFolders(path: string, mode = 0o700): Promise<string | undefined> {
  const first = await mkdir(path, { recursive: true, mode });
  if (first === undefined) return undefined;
  const top = dirname(resolve(first));
  for (let folder = dirname(resolve(path)); ; folder = dirname(folder)) {
    await syncFolder(folder);
    if (folder === top) return first;
  }
}

/** Whether something exists at `path`, of any kind. */
export async function exists(path: string): Promise<boolean> {
  return await lstat(path).then(
    () => true,
    (error: unknown) => {
      if (isMissing(error)) return false;
      throw error;
    },
  );
}

/** Like {@link exists}, for threads that do nothing else. The calling thread waits. */
export function existsNow(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false }) !== undefined;
}

/** The kernel's numbers for a device: `8:1` is sda1. */
export function deviceNumbers(device: bigint): { readonly major: bigint; readonly minor: bigint } {
  return {
    major: ((device >> 8n) & 0xfffn) | ((device >> 32n) & ~0xfffn),
    minor: (device & 0xffn) | ((device >> 12n) & 0xffffff00n),
  };
}

/** Whether the error says that there is no such file. */
export function isMissing(error: unknown): boolean {
  return (error as NodeJS.ErrnoException).code === "ENOENT";
}
