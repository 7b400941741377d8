import { PreconditionError, UsageError } from "../base/errors.js";
import { foldersNamed } from "./domain-folder.js";
import { isOwner, whichOwner } from "./point-owners.js";
import type { Repository } from "./repository.js";
import { pick, type TimedPoint, timedPoints, wantedBy } from "./timed-points.js";

/** Points of a folder. */
interface Candidate {
  readonly folder: string;
  readonly points: readonly TimedPoint[];
}

/** What tells domains of one name apart. */
export interface DomainChoice {
  /** The UUID, its first digits, or `none` for points of no known UUID. */
  readonly uuid?: string | undefined;
  /** The point that is wanted of it, as for `choosePoint`; default: `latest`. */
  readonly at?: string | undefined;
}

/**
 * The domain to work on: the named one, or the repository's only domain.
 * @param name the domain's name, or that of its folder
 * @returns the name of its folder
 * @throws {UsageError} `E_WHICH_DOMAIN`: there are several domains, and none was named, or several of that
 *   name, and neither their UUID nor the id of a point of just one of them was given
 * @throws {PreconditionError} no such domain; `E_NO_POINT`: no domain has the point of that id
 */
export async function chooseDomain(
  repository: Repository,
  name: string | undefined,
  { uuid, at = "latest" }: DomainChoice = {},
): Promise<string> {
  const folders = await chooseDomains(repository, name);
  const [only, ...others] = folders;
  if (only === undefined) throw noPoints();
  if (others.length === 0 && uuid === undefined) return only;
  if (name === undefined && uuid === undefined) return await onlyOneWith(repository, folders, at);
  const candidates = await candidatesIn(repository, folders, uuid);
  if (uuid !== undefined && candidates.length === 0) throw noDomain(name, folders, uuid);
  const wanted = wantedBy(at);
  const found = candidates.flatMap(({ folder, points }) => {
    const point = pick(points, wanted);
    return point ? [{ folder, point }] : [];
  });
  const [first, ...more] = found;
  const isId = wanted.kind === "id" || wanted.kind === "prefix";
  if (first && more.length === 0 && isId) return first.folder;
  const owners = new Set(candidates.flatMap(ownersAmong));
  if (owners.size > 1)
    throw whichOwner(name === undefined ? "several domains" : `several domains called ${name}`, owners);
  // Version 0.1 put the points of a domain beside those of another of its name, so it may have two folders.
  // Its newest points are in its own one, which comes last.
  if (wanted.kind === "latest") return found.at(-1)?.folder ?? only;
  const times = found.map(({ point }) => point.time);
  return found[times.lastIndexOf(Math.max(...times))]?.folder ?? only;
}

/**
 * The folders of the domains that are called `name`, or of all domains; those that have points of `uuid`, if
 * it is given.
 * @throws {PreconditionError} `E_NO_DOMAIN`: there is none, though the user named one
 */
export async function chooseDomains(
  repository: Repository,
  name: string | undefined,
  uuid?: string,
): Promise<string[]> {
  const folders = name === undefined ? await repository.domains() : await foldersNamed(repository, name);
  if (name !== undefined && folders.length === 0) throw noDomain(name, await repository.domains());
  if (uuid === undefined) return folders;
  const candidates = await candidatesIn(repository, folders, uuid);
  if (candidates.length === 0) throw noDomain(name, folders, uuid);
  return candidates.map(({ folder }) => folder);
}

/**
 * The folders of those domains that have a point such as `at` names.
 * @throws {UsageError} `E_BAD_POINT`
 * @throws {PreconditionError} `E_NO_POINT`: none has
 */
export async function foldersWithPoint(
  repository: Repository,
  folders: readonly string[],
  at: string,
): Promise<string[]> {
  const wanted = wantedBy(at);
  const having: string[] = [];
  for (const folder of folders) {
    if (pick(await timedPoints(repository, folder), wanted)) having.push(folder);
  }
  if (having.length > 0) return having;
  const what = wanted.kind === "time" ? `as old as ${at}` : at;
  const message = `no domain of the repository has a restore point ${what}. List what there is with "nbdpull points"`;
  throw new PreconditionError("E_NO_POINT", message, { details: { at } });
}

/** Of several domains the one whose point has that id, or an id that begins so. */
async function onlyOneWith(repository: Repository, folders: readonly string[], at: string): Promise<string> {
  const { kind } = wantedBy(at);
  const isId = kind === "id" || kind === "prefix";
  const having = isId ? await foldersWithPoint(repository, folders, at) : folders;
  const [only, ...others] = having;
  if (only !== undefined && others.length === 0) return only;
  const what = isId ? `a point ${at} of several domains` : "several domains";
  throw new UsageError("E_WHICH_DOMAIN", `the repository has ${what}, name one: ${listed(having)}`);
}

/** The folders with points of that UUID, and those points. Of a damaged point nobody knows whose it is. */
async function candidatesIn(
  repository: Repository,
  folders: readonly string[],
  uuid: string | undefined,
): Promise<Candidate[]> {
  const candidates: Candidate[] = [];
  for (const folder of folders) {
    const all = await timedPoints(repository, folder);
    const points =
      uuid === undefined ? all : all.filter(({ owner }) => owner !== undefined && isOwner(owner, uuid));
    if (points.length > 0) candidates.push({ folder, points });
  }
  return candidates;
}

function ownersAmong({ points }: Candidate): (string | null)[] {
  return points.flatMap(({ owner }) => (owner === undefined ? [] : [owner]));
}

/** For commands that need a point. */
export function noPoints(): PreconditionError {
  const message = "the repository has no points yet: take one by nbdpull backup";
  return new PreconditionError("E_NO_DOMAIN", message);
}

function noDomain(name: string | undefined, there: readonly string[], uuid?: string): PreconditionError {
  const called = name === undefined ? "" : ` ${name}`;
  const message =
    uuid === undefined
      ? `the repository has no domain${called}: it has ${listed(there)}`
      : `the repository has no points of a domain${called} with the UUID ${uuid} in ${listed(there)}: "nbdpull points" shows whose they are`;
  return new PreconditionError("E_NO_DOMAIN", message, { details: { domain: name, uuid } });
}

function listed(names: readonly string[]): string {
  return names.length === 0 ? "none" : names.join(", ");
}
