import { isUnreadable } from "../base/damage.js";
import { hasCode } from "../base/errors.js";
import { isMissing } from "../host/durable-files.js";
import { sha256Of } from "../image/readable-file.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import type { KeptFile, Manifest } from "./manifest.js";

const MiB = 1024 * 1024;
/** Bytes of the largest file that is kept, by role. Real firmware has some 64 MiB, initrds some hundred. */
const LARGEST: Readonly<Record<string, number>> = { nvram: 64 * MiB };
const LARGEST_OF_OTHERS = 1024 * MiB;

/** Bytes of the largest file of that role that a point keeps. */
export function largestKept(role: string): number {
  return Object.hasOwn(LARGEST, role) ? (LARGEST[role] ?? 0) : LARGEST_OF_OTHERS;
}

/**
 * What is wrong with a kept file; undefined if it is what was stored.
 * @throws the signal's reason
 * @throws the file system's error, except for a failing medium, which counts as damage
 */
export async function damageOf(
  folder: StoredFolder,
  { role, file, length, sha256 }: KeptFile,
  signal?: AbortSignal,
): Promise<string | undefined> {
  try {
    const found = await folder.find(file);
    if (!found) return `${file} is missing`;
    if (!found.isFile()) return `${file} is no plain file`;
    if (found.size !== length) return `${file} has ${found.size} bytes, of ${length} that were stored`;
    const most = largestKept(role);
    if (length > most) return `${file} has ${length} bytes, and a file of that kind never more than ${most}`;
    return (await sha256Of(folder.at(file), signal)) === sha256
      ? undefined
      : `${file} is not what was stored`;
  } catch (error) {
    if (isMissing(error)) return `${file} is missing`;
    if (hasCode(error, "E_LINK")) return `${file} is no plain file`;
    if (isUnreadable(error)) return `${file}: the file system cannot read it (${error.code})`;
    throw error;
  }
}

/** The files that a restore copies back. The definition is not among them: a restore adjusts it. */
export function bootFilesOf({ files = [] }: Manifest): readonly KeptFile[] {
  return files.filter(({ role }) => role !== "definition");
}
