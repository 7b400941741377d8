import { DamageError, PreconditionError } from "../base/errors.js";
import { folderNameOf } from "./folder-name.js";
import type { Manifest } from "./manifest.js";
import { pointIdsIn } from "./pending-point.js";
import { domainsAmong, ownersOf, uuidOf, whichOwner } from "./point-owners.js";
import { readManifest } from "./read-manifest.js";
import type { Repository } from "./repository.js";

/** A domain as manifests name it. */
type Domain = Manifest["domain"];

/** How many digits of the UUID a folder's name has, if the domain is not the first of its name. */
const DIGITS = 8;
const SUFFIX = /@([0-9a-f]{8}(?:-[0-9a-f]{4}){0,3}(?:-[0-9a-f]{12})?)$/;

/**
 * The name of the folder that new points of a domain belong in. The first domain of a name gets a folder of
 * that name (as far as a folder can be called so, see `folderNameOf`); another one that is called the same
 * gets `NAME@` and the first eight digits of its UUID.
 *
 * An older version put the points of all of them into one folder. It stays with the domain of the newest
 * point in it; the others get folders of their own. A folder whose points have no UUID is taken over.
 *
 * @throws {PreconditionError} `E_OTHER_DOMAIN`: all folders that it could have are other domains'
 * @throws {UsageError} `E_WHICH_DOMAIN`: its UUID is unknown, and there are points of several domains of this
 *   name
 */
export async function domainFolder(repository: Repository, domain: Domain): Promise<string> {
  const { name } = domain;
  const uuid = uuidOf(domain);
  if (uuid === null) return await onlyFolder(repository, name);
  const base = folderNameOf(name);
  const own = [`${base}@${uuid.slice(0, DIGITS)}`, `${base}@${uuid}`];
  for (const folder of own) if ((await newestOwner(repository, folder)) === uuid) return folder;
  for (const folder of [base, ...own]) {
    const owner: string | null | undefined = await newestOwner(repository, folder);
    if ((owner ?? uuid) === uuid) return folder;
  }
  const message = `the folders ${[base, ...own].join(", ")} of ${repository.path} have points of other domains: give ${name} another repository, or another name`;
  throw new PreconditionError("E_OTHER_DOMAIN", message, { details: { domain: name, uuid } });
}

async function onlyFolder(repository: Repository, name: string): Promise<string> {
  const folders = await foldersNamed(repository, name);
  const owners = new Set<string | null>();
  for (const folder of folders) {
    const points = await repository.points(folder, () => undefined);
    for (const owner of domainsAmong(ownersOf(points))) owners.add(owner);
  }
  if (owners.size <= 1) return folders[0] ?? folderNameOf(name);
  throw whichOwner(`several domains called ${name}`, owners);
}

/**
 * The folders that may have points of domains called `name`: that of the name itself, and those of later
 * domains of this name.
 */
export async function foldersNamed(repository: Repository, name: string): Promise<string[]> {
  const base = folderNameOf(name);
  const folders: string[] = [];
  for (const folder of await repository.folders()) {
    if (folder === base && (await repository.pointIds(folder)).length > 0) folders.push(folder);
    const [, digits] = SUFFIX.exec(folder) ?? [];
    if (digits === undefined || folder !== `${base}@${digits}`) continue;
    // A domain may itself be called NAME@12345678.
    if ((await newestOwner(repository, folder))?.startsWith(digits)) folders.push(folder);
  }
  return folders;
}

/**
 * What a user should know when a domain gets its first point in a folder.
 * @param folder as `domainFolder` tells it
 */
export async function firstPointNotices(
  repository: Repository,
  domain: Domain,
  folder: string,
): Promise<string[]> {
  const { name } = domain;
  const uuid = uuidOf(domain);
  if (uuid === null || (await repository.pointIds(folder)).length > 0) return [];
  const notices: string[] = [];
  const base = folderNameOf(name);
  if (folder !== base) {
    const taken = `the folder ${base} of the repository has points of another domain of this name`;
    notices.push(
      `${taken}, so those of ${name} with the UUID ${uuid} go to ${folder}: name it so, or give --uuid`,
    );
  }
  for (const other of await repository.folders()) {
    // Other users may have folders in a repository that are closed to this one.
    const owner = await newestOwner(repository, other).catch(() => undefined);
    if (owner !== uuid) continue;
    notices.push(
      `${other} has points of ${name} too, by its UUID: new ones go to ${folder}, and begin with a full one`,
    );
  }
  return notices;
}

/** The UUID of the newest point that has one; null: none has one; undefined: there is no point. */
async function newestOwner(repository: Repository, folder: string): Promise<string | null | undefined> {
  await using opened = await repository.openDomain(folder);
  if (!opened) return undefined;
  const ids = await pointIdsIn(opened);
  for (const id of ids.toReversed()) {
    try {
      await using point = await opened.folder(id);
      const owner = point && uuidOf((await readManifest(point, id)).domain);
      if (owner) return owner;
    } catch (error) {
      // Older points tell it as well.
      if (!(error instanceof DamageError)) throw error;
    }
  }
  return ids.length === 0 ? undefined : null;
}
