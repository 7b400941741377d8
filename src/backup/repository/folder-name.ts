/** How the folder of a domain may be called. */

import { createHash } from "node:crypto";
import { UsageError } from "../base/errors.js";

/** The file that marks a repository. */
export const MARKER = "nbdpull.json";
/** A folder that some file systems create in their root. */
export const LOST_AND_FOUND = "lost+found";
/** Bytes. Leaves room for suffixes in a name of 255. */
const MOST_BYTES = 200;
/** Bytes of a name that stay readable in a folder that can't be called so. */
const MOST_READABLE_BYTES = 150;
const HASH_DIGITS = 16;
/** What a folder's name has more than its domain's, where another domain of that name was there before. */
const UUID_SUFFIX = /@[0-9a-f-]{8,36}$/;

/** Whether a folder of this name may be a domain's. What begins with a dot is hidden, or being made. */
export function isFolderName(name: string): boolean {
  const isOurs = name === MARKER || name.startsWith(".");
  const bytes = Buffer.byteLength(name.replace(UUID_SUFFIX, ""));
  return name !== "" && !isOurs && !/[/\0]/.test(name) && bytes <= MOST_BYTES;
}

/**
 * The name of a domain's folder. It is the domain's own name, if a folder can be called so. Otherwise it is
 * what can be read of that name, `~`, and the beginning of its SHA-256: `_secret~0123456789abcdef`. Such a
 * name is its own folder name too, so that both can be used to find the points.
 *
 * @throws {UsageError} `E_DOMAIN_NAME`: the name is empty
 */
export function folderNameOf(domain: string): string {
  if (isFolderName(domain)) return domain;
  if (domain === "") throw new UsageError("E_DOMAIN_NAME", "a domain's name can't be empty");
  const hash = createHash("sha256").update(domain).digest("hex").slice(0, HASH_DIGITS);
  const readable = domain.replace(/^\.+/, (dots) => "_".repeat(dots.length)).replaceAll(/[/\p{Cc}]/gu, "_");
  return `${cut(readable, MOST_READABLE_BYTES)}~${hash}`;
}

/** The beginning of a text, in whole characters. */
function cut(text: string, mostBytes: number): string {
  let kept = "";
  for (const character of text) {
    if (Buffer.byteLength(kept) + Buffer.byteLength(character) > mostBytes) break;
    kept += character;
  }
  return kept;
}
