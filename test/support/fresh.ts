import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach } from "vitest";

/**
 * Call it in a file or in the body of a `describe`. What it returns gives paths in a folder that each try of a
 * test has for itself: a second try finds nothing of the first one there.
 */
export function freshPaths(): (name: string) => string {
  let folder = "";
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "nbdpull-try-"));
  });
  afterEach(async () => {
    await rm(folder, { recursive: true, force: true });
  });
  return (name) => join(folder, name);
}
