import { constants, type Stats } from "node:fs";
import { resolve } from "node:path";
import { hasCode, PreconditionError } from "../base/errors.js";
import { isMissing } from "../host/durable-files.js";
import { HeldFolder } from "../host/held-folder.js";
import { ChangeablePath, unchangeablePath } from "../host/unchangeable-path.js";
import { namesStore } from "../storage/open-store.js";
import { LOST_AND_FOUND, MARKER } from "./folder-name.js";

/** Rights of the group and of all others. */
const OTHERS = 0o077;

/**
 * Looks for a folder or file of a repository that others than root and this process's user can write to, and
 * for a folder above it that they can change. Whoever can may forge points: digests show what has rotted, and
 * not what somebody has written on purpose.
 * @param domains whose points are looked at too; undefined: all
 * @returns the first such place, as a sentence; undefined: there is none
 */
export async function findStranger(
  path: string,
  domains: readonly string[] | undefined,
): Promise<string | undefined> {
  // Who else can write to a store is nothing that this machine knows.
  if (namesStore(path)) return undefined;
  const above = await strangerAbove(path);
  if (above !== undefined) return above;
  const root = await HeldFolder.open(path).catch((error: unknown) => {
    if (isMissing(error) || hasCode(error, "ENOTDIR")) return undefined;
    throw error;
  });
  await using _ = root;
  if (!root) return undefined;
  const found = strangersIn(path, await root.status()) ?? (await strangerToFiles(root));
  if (found !== undefined) return found;
  for (const { name } of await foldersIn(root)) {
    await using domain = await root.folder(name);
    const stranger = domain && strangersIn(domain.path, await domain.status());
    if (stranger !== undefined) return stranger;
    if (!domain || (domains && !domains.includes(name))) continue;
    for (const { name: point, status } of await foldersIn(domain)) {
      const inside = strangersIn(`${domain.path}/${point}`, status);
      if (inside !== undefined) return inside;
      await using folder = await domain.folder(point);
      const toFile = folder && (await strangerToFiles(folder));
      if (toFile !== undefined) return toFile;
    }
  }
  return undefined;
}

/** @throws {PreconditionError} `E_STRANGERS`: this is root, and others can write to the repository */
export function refuseStranger(stranger: string): void {
  if (process.geteuid?.() !== 0) return;
  const message = `${stranger}: root neither writes to it nor defines a domain from it. If you trust them, give --trust-repository; otherwise look at what is there, and take it over: chown -R root, chmod -R go-w`;
  throw new PreconditionError("E_STRANGERS", message);
}

/**
 * Both together, for whoever writes without a word to the user: others than root are not asked.
 * @throws {PreconditionError} `E_STRANGERS`
 */
export async function refuseStrangers(path: string, domains: readonly string[]): Promise<void> {
  if (process.geteuid?.() !== 0) return;
  const stranger = await findStranger(path, domains);
  if (stranger !== undefined) refuseStranger(stranger);
}

function strangersIn(path: string, { uid, mode }: Stats): string | undefined {
  if (uid !== 0 && uid !== process.geteuid?.()) return `${path} belongs to user ${uid}, who can forge points`;
  if ((mode & 0o002) !== 0) return `everybody can write to ${path}, and so forge points`;
  return (mode & 0o020) === 0 ? undefined : `its group can write to ${path}, and so forge points`;
}

/** Whoever can change a folder above the repository can put another one in its place. */
async function strangerAbove(path: string): Promise<string | undefined> {
  try {
    await unchangeablePath(resolve(path), [0, process.geteuid?.() ?? 0]);
    return undefined;
  } catch (error) {
    if (!(error instanceof ChangeablePath)) {
      if (isMissing(error) || hasCode(error, "ENOTDIR")) return undefined;
      throw error;
    }
    const { who, folder } = error;
    return `${who === "its group" ? `the group of ${folder}` : who} can change ${folder}, and so put another repository at ${path}`;
  }
}

async function strangerToFiles(folder: HeldFolder): Promise<string | undefined> {
  for (const entry of await folder.entries()) {
    const status = entry.isFile() ? await folder.find(entry.name) : undefined;
    const stranger = status?.isFile() ? strangersIn(`${folder.path}/${entry.name}`, status) : undefined;
    if (stranger !== undefined) return stranger;
  }
  return undefined;
}

async function foldersIn(folder: HeldFolder): Promise<{ name: string; status: Stats }[]> {
  const names = (await folder.entries()).filter((entry) => entry.isDirectory()).map(({ name }) => name);
  const found = await Promise.all(names.map(async (name) => ({ name, status: await folder.find(name) })));
  return found.flatMap(({ name, status }) => (status?.isDirectory() ? [{ name, status }] : []));
}

/**
 * Takes the rights of group and others away from the folders of an existing repository's domains, and from
 * all that is in them, as version 0.1 gave them. A folder with the setgid bit is shared on purpose and stays
 * as it is; so does what belongs to somebody else.
 * @returns how many domains have changed
 */
export async function tighten(path: string): Promise<number> {
  const root = await HeldFolder.open(path).catch((error: unknown) => {
    if (isMissing(error) || hasCode(error, "ENOTDIR")) return undefined;
    throw error;
  });
  await using _ = root;
  if (!root || !(await root.find(MARKER)) || isShared(await root.status())) return 0;
  let changed = 0;
  for (const { name, status } of await foldersIn(root)) {
    if ((status.mode & OTHERS) === 0 || isShared(status) || status.uid !== process.geteuid?.()) continue;
    await using domain = await root.folder(name);
    if (!domain || name.startsWith(".") || name === LOST_AND_FOUND) continue;
    for (const { name: point } of await foldersIn(domain)) {
      await using folder = await domain.folder(point);
      await folder?.makePrivate();
    }
    // Last, because its mode tells that this is done.
    await domain.makePrivate();
    changed += 1;
  }
  return changed;
}

function isShared({ mode }: Stats): boolean {
  return (mode & constants.S_IFMT) === constants.S_IFDIR && (mode & 0o2000) !== 0;
}
