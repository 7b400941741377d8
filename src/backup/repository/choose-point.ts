import { PreconditionError } from "../base/errors.js";
import type { Manifest } from "./manifest.js";
import { isOwner, whichOwner } from "./point-owners.js";
import type { Repository } from "./repository.js";
import { pick, type TimedPoint, timedPoints, wantedBy } from "./timed-points.js";

/**
 * The point that `at` names: an id, `latest`, or a time (the newest point not made after it). A damaged
 * manifest of another point does no harm.
 *
 * @param domain the name of its folder in the repository
 * @param uuid whose points are meant, where the folder has those of several domains: the UUID, its first
 *   digits, or `none` for points of no known UUID
 * @throws {UsageError} `E_BAD_POINT`: `at` is not an id, a time, or `latest`; `E_WHICH_DOMAIN`: the folder
 *   has points of several domains, and neither an id nor `uuid` says which is meant
 * @throws {PreconditionError} there is no such point
 * @throws {DamageError} its manifest is missing or wrong
 */
export async function choosePoint(
  repository: Repository,
  domain: string,
  at: string,
  uuid?: string,
): Promise<Manifest> {
  const wanted = wantedBy(at);
  if (wanted.kind === "id" && uuid === undefined && (await repository.pointIds(domain)).includes(at)) {
    return await repository.point(domain, at);
  }
  const all = await timedPoints(repository, domain);
  const points =
    uuid === undefined ? all : all.filter(({ owner }) => owner === undefined || isOwner(owner, uuid));
  if (wanted.kind !== "id") refuseSeveral(domain, points);
  const chosen = pick(points, wanted);
  if (chosen) return await repository.point(domain, chosen.id);
  const what = at === "latest" ? "no restore point yet" : `no restore point ${at}, nor one as old`;
  throw new PreconditionError(
    "E_NO_POINT",
    `${domain} has ${what}. List what there is with "nbdpull points"`,
    {
      details: { domain, at },
    },
  );
}

function refuseSeveral(domain: string, points: readonly TimedPoint[]): void {
  const owners = new Set(points.flatMap(({ owner }) => (owner === undefined ? [] : [owner])));
  if (owners.size > 1) throw whichOwner(`several domains in the folder ${domain}`, owners);
}

/**
 * The disks to work on: the named ones, each once, or all disks of the point.
 * @throws {PreconditionError} `E_NO_DISK`: the point has no disk of one of the names
 */
export function chooseDisks(point: Manifest, names: readonly string[] | undefined): readonly string[] {
  const present = point.disks.map((disk) => disk.name);
  if (!names) return present;
  for (const name of names) {
    if (!present.includes(name)) {
      const message = `point ${point.id} has no disk ${name}: it has ${present.join(", ")}`;
      throw new PreconditionError("E_NO_DISK", message, { details: { disk: name, known: present } });
    }
  }
  return [...new Set(names)];
}
