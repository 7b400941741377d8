/** What the kernel says of our mounts, and how they are taken away. */
import { lstat, readFile } from "node:fs/promises";
import { execa } from "execa";
import { BackupError, hasCode, PreconditionError } from "../base/errors.js";
import { shellWord } from "../base/shell-word.js";
import { toolProcess } from "../host/tool-process.js";

/** The type of our mounts in the kernel's table, so that nobody else's are ever taken away. */
const SUBTYPE = "nbdpull";
const TYPE = `fuse.${SUBTYPE}`;

/** The options of FUSE that make a mount ours, by which it is found again. */
export function asOurs(point: string): string[] {
  return [`subtype=${SUBTYPE}`, `fsname=${SUBTYPE}:${point}`];
}

/** The paths of our mounts directly in `folder`, which is a path without links. */
export async function mountsIn(folder: string): Promise<string[]> {
  const table = await readFile("/proc/self/mountinfo", "utf8");
  return table
    .split("\n")
    .map((line) => line.split(" "))
    .filter((fields) => fields[fields.indexOf("-") + 1] === TYPE)
    .map((fields) => unescaped(fields[4] ?? ""))
    .filter((path) => path.startsWith(`${folder}/`) && !path.slice(folder.length + 1).includes("/"));
}

/** The kernel writes blanks and backslashes of a path as octal numbers. */
function unescaped(path: string): string {
  return path.replaceAll(/\\([0-7]{3})/g, (_, octal: string) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  );
}

/**
 * Takes a mount away.
 * @param lazily also where somebody uses it, who gets errors then
 * @throws {PreconditionError} `E_MOUNT_BUSY`: somebody uses it
 * @throws {BackupError} `E_UNMOUNT`: the system can't, or this user may not
 */
export async function unmount(path: string, { lazily = false } = {}): Promise<void> {
  const isRoot = process.getuid?.() === 0;
  const [tool = "", ...args] = isRoot
    ? ["umount", ...(lazily ? ["--lazy"] : [])]
    : ["fusermount3", "-u", ...(lazily ? ["-z"] : [])];
  const { failed, stderr, shortMessage } = await execa(tool, [...args, "--", path], {
    reject: false,
    stdin: "ignore",
    ...toolProcess(),
  });
  if (!failed || !(await isMounted(path))) return;
  const details = { path };
  if (/busy/i.test(stderr)) {
    const message = `${path} is in use: unmount what is mounted from it and close its files (fuser -v ${shellWord(path)} tells whose), or say --force`;
    throw new PreconditionError("E_MOUNT_BUSY", message, { details });
  }
  throw new BackupError("E_UNMOUNT", `${path} can't be unmounted: ${stderr.trim() || shortMessage}`, {
    details,
  });
}

/** Whether a mount's program is gone, so that every access to it fails. */
export async function isDeadMount(path: string): Promise<boolean> {
  return await lstat(path).then(
    () => false,
    (error: unknown) => hasCode(error, "ENOTCONN"),
  );
}

export async function isMounted(path: string): Promise<boolean> {
  return (await mountsIn(path.slice(0, path.lastIndexOf("/")))).includes(path);
}
