import { lstat, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import { parseJson } from "../base/json.js";
import { isDead, thisSystemProcess } from "../host/process-identity.js";
import type { NewStoredPoint } from "./stored-writing.js";

const PREFIX = "nbdpull-kept-";
const KEPT = /^nbdpull-kept-[A-Za-z0-9]{6}$/;
/** Says whose it is. */
const OWNER = "owner.json";
/**
 * A folder is needed for seconds. Whether a process lives can't be told if it is in another container, or was
 * before a reboot.
 */
const MOST_AGE_MS = 24 * 60 * 60 * 1000;
const FILES = "files";

const owner = z.object({ boot: z.string(), pid: z.number().int().positive(), start: z.string() });

/**
 * Runs `work` with a new folder of this machine that nobody else can read, and puts the files that it makes
 * there into the point. They are few and small: a domain's definition, and what its firmware keeps.
 *
 * These may hold secrets, so what a killed process of this user has left of them is removed first.
 * @param parent the folder that it is made in
 */
export async function keepLocally<T>(
  point: Pick<NewStoredPoint, "create">,
  work: (folder: string) => Promise<T>,
  parent: string = tmpdir(),
): Promise<T> {
  await removeDead(parent);
  const folder = await mkdtemp(join(parent, PREFIX));
  try {
    await writeFile(join(folder, OWNER), JSON.stringify(await thisSystemProcess()));
    const files = join(folder, FILES);
    await mkdir(files);
    const result = await work(files);
    for (const name of await readdir(files)) await point.create(name, await readFile(join(files, name)));
    return result;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** What can't be removed stays. */
async function removeDead(parent: string): Promise<void> {
  const names = await readdir(parent).catch((): string[] => []);
  for (const name of names.filter((each) => KEPT.test(each))) {
    await removeIfDead(join(parent, name)).catch(() => undefined);
  }
}

async function removeIfDead(folder: string): Promise<void> {
  // Others can make folders beside it, but not put anything into ours.
  const found = await lstat(folder);
  if (!found.isDirectory() || found.uid !== process.geteuid?.()) return;
  const note = await readFile(join(folder, OWNER), "utf8").catch(() => "");
  const { data: maker } = owner.safeParse(parseJson(note));
  const isOld = found.mtimeMs < Date.now() - MOST_AGE_MS;
  if (isOld || (maker && (await isDead(maker)))) await rm(folder, { recursive: true, force: true });
}
