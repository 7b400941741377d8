import { PreconditionError, UsageError } from "../base/errors.js";
import { isPointId, type Manifest, timeOfPointId } from "./manifest.js";
import type { Repository } from "./repository.js";

/**
 * The point that `at` names: an id, `latest`, or a time (the newest point not after it). Reads only that
 * point's manifest, so a damaged manifest of another point does no harm.
 *
 * @throws {UsageError} `at` is not an id, a time, or `latest`
 * @throws {PreconditionError} there is no such point
 * @throws {DamageError} its manifest is missing or wrong
 */
export async function choosePoint(repository: Repository, domain: string, at: string): Promise<Manifest> {
  const ids = await repository.pointIds(domain);
  const id = chooseId(ids, at);
  if (id !== undefined) return await repository.point(domain, id);
  const what = at === "latest" ? "no restore point yet" : `no restore point ${at}, nor one as old`;
  throw new PreconditionError(
    "E_NO_POINT",
    `${domain} has ${what}. List what there is with "nbdpull points"`,
    {
      details: { domain, at },
    },
  );
}

/**
 * The disks to work on: the named ones, each once, or all disks of the point.
 * @throws {UsageError} the point has no disk of one of the names
 */
export function chooseDisks(point: Manifest, names: readonly string[] | undefined): readonly string[] {
  const present = point.disks.map((disk) => disk.name);
  if (!names) return present;
  for (const name of names) {
    if (!present.includes(name)) {
      const message = `point ${point.id} has no disk ${name}: it has ${present.join(", ")}`;
      throw new UsageError("E_NO_DISK", message);
    }
  }
  return [...new Set(names)];
}

/**
 * Times that users can give. A time without a zone is local. Date.parse alone would accept nearly anything.
 */
const ISO_TIME = /^\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,3})?)?(Z|[+-]\d\d:\d\d)?)?$/;

/** Whether the day exists. Date.parse takes the 30th of February for a day in March. */
function isCalendarDay(day: string): boolean {
  const date = new Date(`${day}T00:00Z`);
  return !Number.isNaN(date.getTime()) && date.toISOString().startsWith(day);
}

function chooseId(ids: readonly string[], at: string): string | undefined {
  if (at === "latest") return ids.at(-1);
  if (isPointId(at)) return ids.find((id) => id === at);
  // Date.parse would take a date alone for midnight UTC.
  const text = at.includes("T") ? at : `${at}T00:00`;
  const time = ISO_TIME.test(at) && isCalendarDay(at.slice(0, 10)) ? Date.parse(text) : Number.NaN;
  if (Number.isNaN(time)) {
    const message = `"${at}" is neither a point's id, nor a time such as 2026-11-20T11:32 or 2026-11-20T11:32:05Z, nor latest`;
    throw new UsageError("E_BAD_POINT", message);
  }
  return ids.findLast((id) => timeOfPointId(id) <= time);
}

/**
 * The domain to work on: the named one, or the repository's only domain.
 * @throws {UsageError} there are several domains, and none was named
 * @throws {PreconditionError} no such domain
 */
export async function chooseDomain(repository: Repository, name: string | undefined): Promise<string> {
  const domains = await repository.domains();
  if (name !== undefined) {
    if (domains.includes(name)) return name;
    throw new PreconditionError(
      "E_NO_DOMAIN",
      `the repository has no domain ${name}: it has ${listed(domains)}`,
    );
  }
  const [only, ...others] = domains;
  if (only === undefined) throw new PreconditionError("E_NO_DOMAIN", "the repository has no points yet");
  if (others.length > 0) {
    throw new UsageError(
      "E_WHICH_DOMAIN",
      `the repository has several domains, name one: ${listed(domains)}`,
    );
  }
  return only;
}

function listed(names: readonly string[]): string {
  return names.length === 0 ? "none" : names.join(", ");
}
