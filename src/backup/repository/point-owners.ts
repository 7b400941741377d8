import { UsageError } from "../base/errors.js";
import type { Manifest } from "./manifest.js";

/** Of which domain each point is, by id: the domain's UUID in lower case, or null if nothing tells it. */
export type Owners = ReadonlyMap<string, string | null>;

/** What `--uuid` takes for points that no UUID is known of. */
const NO_UUID = "none";

/**
 * Finds out of which domain each point of a folder is. Points that were made without libvirt have no UUID of
 * their own: such a point is of the domain whose points it is based on, or whose points are based on it.
 * Where all others are of one domain, so is the rest.
 *
 * @param points all points of a folder, oldest first
 */
export function ownersOf(points: readonly Manifest[]): Owners {
  const owners = new Map<string, string | null>(points.map(({ id, domain }) => [id, uuidOf(domain)]));
  const parentsOf = ({ disks }: Manifest): string[] => disks.flatMap(({ parent }) => parent ?? []);
  const inherit = (point: Manifest): void => {
    const known = parentsOf(point).map((parent) => owners.get(parent) ?? null);
    if (owners.get(point.id) === null) owners.set(point.id, known.find((owner) => owner !== null) ?? null);
  };
  const bequeath = (point: Manifest): void => {
    const owner = owners.get(point.id) ?? null;
    for (const parent of parentsOf(point)) if (owners.get(parent) === null) owners.set(parent, owner);
  };
  for (const point of points) inherit(point);
  for (const point of points.toReversed()) bequeath(point);
  // Other points may be based on those that have an owner only now.
  for (const point of points) inherit(point);
  const [only, ...others] = domainsAmong(owners).filter((owner) => owner !== null);
  if (only === undefined || others.length > 0) return owners;
  return new Map(points.map(({ id }) => [id, only]));
}

/** The domains that points are of, each once, in the order of their oldest points. */
export function domainsAmong(owners: Owners): (string | null)[] {
  return [...new Set(owners.values())];
}

/**
 * The points of one domain among all points of a folder, oldest first. Those of unknown domains may be its
 * own.
 * @param uuid of the domain; null: unknown
 */
export function pointsOf(points: readonly Manifest[], uuid: string | null): Manifest[] {
  const owners = ownersOf(points);
  const ours = uuid?.toLowerCase() ?? null;
  return points.filter(({ id }) => ours === null || (owners.get(id) ?? ours) === ours);
}

/**
 * Whether a point's owner is the domain that the user means.
 * @param wanted a UUID, its first digits, or `none`: points of no known UUID
 */
export function isOwner(owner: string | null, wanted: string): boolean {
  return owner === null ? wanted === NO_UUID : owner.startsWith(wanted.toLowerCase());
}

/**
 * The error for points of several domains where those of one are meant.
 * @param whose for the message: `several domains called web`
 */
export function whichOwner(whose: string, owners: Iterable<string | null>): UsageError {
  const uuids = [...owners];
  const known = uuids.map((uuid) => (uuid === null ? "none, for points of no known UUID" : uuid)).join("; ");
  const message = `the repository has points of ${whose}: say which one with --uuid and its UUID or the first eight digits (${known})`;
  return new UsageError("E_WHICH_DOMAIN", message, { details: { uuids } });
}

/** The domain's UUID as it is compared here. */
export function uuidOf({ uuid }: Manifest["domain"]): string | null {
  return uuid?.toLowerCase() ?? null;
}
