import { DamageError, PreconditionError, UsageError } from "./errors.js";
import { isFolder } from "./files.js";
import type { ReadOptions } from "./image/image-file.js";
import { Layer } from "./layer.js";
import { type DiskManifest, isPointId, type Manifest, timeOfPointId } from "./manifest.js";
import type { Repository } from "./repository.js";

/** One disk of one point, by its manifest. */
export interface Link {
  readonly point: Manifest;
  readonly disk: DiskManifest;
}

/**
 * The layers that make up a disk at a point, from that point down to the full copy that carries it. Only manifests
 * are followed: never a file's time, nor the backing name inside an image. Parents are older than what is based on
 * them, so a chain cannot run in a loop.
 *
 * @param domain by its folder in the repository
 * @throws {DamageError} a point of the chain is missing or unreadable, or has not that disk
 */
export async function findChain(
  repository: Repository,
  domain: string,
  point: Manifest,
  diskName: string,
): Promise<Link[]> {
  const links = [linkOf(domain, point, diskName)];
  for (let link = links[0]; link && link.disk.parent !== null; ) {
    link = await findParentLink(repository, domain, link);
    links.push(link);
  }
  return links;
}

/**
 * One step down the chain.
 * @throws {DamageError} the parent is missing or unreadable, or has not that disk
 */
export async function findParentLink(repository: Repository, domain: string, child: Link): Promise<Link> {
  const { point, disk } = child;
  const parent = disk.parent ?? "";
  if (!(await isFolder(repository.pointFolder(domain, parent)))) {
    const what = `point ${point.id} of ${domain} needs point ${parent} for disk ${disk.name}, which is missing: bring its folder back, or restore a point that does not depend on it`;
    throw broken(what, point.id, disk.name, parent);
  }
  const found = await repository.point(domain, parent).catch((error: unknown) => {
    throw error instanceof DamageError ? error.of(error.message, { point: parent, disk: disk.name }) : error;
  });
  return linkOf(domain, found, disk.name);
}

function linkOf(domain: string, point: Manifest, diskName: string): Link {
  const disk = point.disks.find((candidate) => candidate.name === diskName);
  if (!disk) throw broken(`point ${point.id} of ${domain} has no disk ${diskName}`, point.id, diskName);
  return { point, disk };
}

/** @param missing the point below that is not there */
function broken(message: string, point: string, disk: string, missing?: string): DamageError {
  return new DamageError("E_CHAIN", message, { details: { point, disk, ...(missing ? { missing } : {}) } });
}

/**
 * Opens every layer of a chain, top first; if one fails to open, none stays open.
 * @param options how their images are read
 * @throws {DamageError} a file is missing or does not fit its manifest
 */
export async function openChain(
  repository: Repository,
  domain: string,
  links: readonly Link[],
  options: ReadOptions = {},
): Promise<Layer[]> {
  const layers: Layer[] = [];
  try {
    for (const { point, disk } of links) {
      layers.push(await Layer.open(repository.pointFolder(domain, point.id), point.id, disk, options));
    }
    return layers;
  } catch (error) {
    for (const layer of layers) await layer.close();
    throw error;
  }
}

/**
 * Opens all that an increment on this disk would be based on: headers, sizes and digest files, not the data.
 * @throws {DamageError} it could not be restored
 */
export async function proveChain(
  repository: Repository,
  domain: string,
  point: Manifest,
  disk: string,
): Promise<void> {
  const layers = await openChain(repository, domain, await findChain(repository, domain, point, disk));
  for (const layer of layers) await layer.close();
}

/**
 * The point that `at` means: an id, `latest`, or a time (the newest point not after it). Only that point's manifest
 * is read: a damaged one elsewhere does not stand in the way.
 *
 * @throws {UsageError} not an id, a time, or `latest`
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
 * The disks to work on: those named, each once, or all that the point has.
 * @throws {UsageError} the point has no disk of a name
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

/** Without a zone it is local time; Date.parse alone would take nearly anything. */
const ISO_TIME = /^\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,3})?)?(Z|[+-]\d\d:\d\d)?)?$/;

/** Date.parse takes the 30th of February for a day in March. */
function isCalendarDay(day: string): boolean {
  const date = new Date(`${day}T00:00Z`);
  return !Number.isNaN(date.getTime()) && date.toISOString().startsWith(day);
}

function chooseId(ids: readonly string[], at: string): string | undefined {
  if (at === "latest") return ids.at(-1);
  if (isPointId(at)) return ids.find((id) => id === at);
  // Date.parse would take a date alone for midnight in Greenwich.
  const text = at.includes("T") ? at : `${at}T00:00`;
  const time = ISO_TIME.test(at) && isCalendarDay(at.slice(0, 10)) ? Date.parse(text) : Number.NaN;
  if (Number.isNaN(time)) {
    const message = `"${at}" is neither a point's id, nor a time such as 2026-11-20T11:32 or 2026-11-20T11:32:05Z, nor latest`;
    throw new UsageError("E_BAD_POINT", message);
  }
  return ids.findLast((id) => timeOfPointId(id) <= time);
}

/**
 * The domain to work on: the one named, or the repository's only one.
 * @throws {UsageError} several, and none was named
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
