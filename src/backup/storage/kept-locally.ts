import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { NewStoredPoint } from "./stored-writing.js";

/**
 * Runs `work` with a new folder of this machine that nobody else can read, and puts the files that it makes
 * there into the point. They are few and small: a domain's definition, and what its firmware keeps.
 */
export async function keepLocally<T>(
  point: Pick<NewStoredPoint, "create">,
  work: (folder: string) => Promise<T>,
): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), "nbdpull-kept-"));
  try {
    const result = await work(folder);
    for (const name of await readdir(folder)) await point.create(name, await readFile(join(folder, name)));
    return result;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
