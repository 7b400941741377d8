/**
 * Whether this machine can mount by FUSE: containers and build machines often can't, whatever is installed.
 */
import { closeSync, openSync } from "node:fs";
import { execaSync } from "execa";
import { describe } from "vitest";
import { findTool } from "./tools.js";

function obstacle(): string | undefined {
  if (findTool("nbdfuse") === undefined) return "not installed: nbdfuse";
  if (process.getuid?.() !== 0) return "mounting needs root";
  try {
    closeSync(openSync("/dev/fuse", "r+"));
  } catch {
    return "no /dev/fuse that can be opened";
  }
  // Root of a container has no right to mount.
  return execaSync("unshare", ["--mount", "true"], { reject: false }).failed
    ? "no right to mount"
    : undefined;
}

/** `describe` if FUSE works here; otherwise a skip that names why, with `CI=true` as well. */
export function describeWithFuse(title: string, body: () => void): void {
  const why = obstacle();
  if (why === undefined) describe(title, body);
  else describe.skip(`${title} (${why})`, body);
}
