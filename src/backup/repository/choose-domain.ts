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
 * @throws {UsageError} `E_WHICH_DOMAIN`: there are several domains, and none was named, or several of that name,
 *   and neither their UUID nor a point's id was given
 * @throws {PreconditionError} no such domain
 */
export async function chooseDomain(
  repository: Repository,
  name: string | undefined,
  { uuid, at = "latest" }: DomainChoice = {},
): Promise<string> {
  const folders = await chooseDomains(repository, name);
  const [only, ...others] = folders;
  if (only === undefined) throw new PreconditionError("E_NO_DOMAIN", "the repository has no points yet");
  if (others.length === 0 && uuid === undefined) return only;
  if (name === undefined && uuid === undefined) {
    throw new UsageError(
      "E_WHICH_DOMAIN",
      `the repository has several domains, name one: ${listed(folders)}`,
    );
  }
  const candidates = await candidatesIn(repository, folders, uuid);
  if (uuid !== undefined && candidates.length === 0) throw noDomain(name, folders, uuid);
  const wanted = wantedBy(at);
  const found = candidates.flatMap(({ folder, points }) => {
    const point = pick(points, wanted);
    return point ? [{ folder, point }] : [];
  });
  const [first, ...more] = found;
  if (first && more.length === 0 && wanted.kind === "id") return first.folder;
  const owners = new Set(candidates.flatMap(ownersAmong));
  if (owners.size > 1)
    throw whichOwner(name === undefined ? "several domains" : `several domains called ${name}`, owners);
  // Version 0.1 put the points of a domain beside those of another of its name, so it may have two folders. Its
  // newest points are in its own one, which comes last.
  if (wanted.kind === "latest") return found.at(-1)?.folder ?? only;
  const times = found.map(({ point }) => point.time);
  return found[times.lastIndexOf(Math.max(...times))]?.folder ?? only;
}

/**
 * The folders of the domains that are called `name`, or of all domains; those that have points of `uuid`, if it
 * is given.
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
