import { DamageError, PreconditionError, UsageError } from "./errors.js";
import { damage, Layer } from "./layer.js";
import { type DiskManifest, isPointId, type Manifest, timeOfPointId } from "./manifest.js";
import type { Repository } from "./repository.js";

/** One disk of one point, by its manifest. */
export interface Link {
  readonly point: Manifest;
  readonly disk: DiskManifest;
}

/**
 * The layers that make up a disk at a point, from that point down to the full copy that carries it. Only manifests
 * are followed: never a file's time, nor the backing name inside an image.
 *
 * @throws {DamageError} a point of the chain is missing or unreadable, has not that disk, or the chain runs in a loop
 */
export async function findChain(repository: Repository, point: Manifest, diskName: string): Promise<Link[]> {
  const domain = point.domain.name;
  const links: Link[] = [];
  const seen = new Set<string>();
  for (let at = point; ; ) {
    const disk = at.disks.find((candidate) => candidate.name === diskName);
    if (!disk) throw broken(`point ${at.id} of ${domain} has no disk ${diskName}`, at.id, diskName);
    links.push({ point: at, disk });
    seen.add(at.id);
    if (disk.parent === null) return links;
    if (seen.has(disk.parent))
      throw broken(`the chain of ${diskName} comes back to ${disk.parent}`, at.id, diskName);
    at = await readParent(repository, domain, at.id, disk, disk.parent);
  }
}

async function readParent(
  repository: Repository,
  domain: string,
  child: string,
  disk: DiskManifest,
  parent: string,
): Promise<Manifest> {
  const ids = await repository.pointIds(domain);
  if (ids.includes(parent)) return await repository.point(domain, parent);
  const what = `point ${child} of ${domain} needs point ${parent} for disk ${disk.name}, which is missing: bring its folder back, or restore a point that does not depend on it`;
  throw broken(what, child, disk.name);
}

function broken(message: string, point: string, disk: string): DamageError {
  return new DamageError("E_CHAIN", message, { details: { point, disk } });
}

/** Opens every layer of a chain, top first; if one fails to open, none stays open. */
export async function openChain(repository: Repository, links: readonly Link[]): Promise<Layer[]> {
  const layers: Layer[] = [];
  try {
    for (const { point, disk } of links) {
      layers.push(await Layer.open(repository.pointFolder(point.domain.name, point.id), point.id, disk));
    }
    const base = layers.at(-1);
    if (base && !base.complete)
      throw damage(base.pointId, base.disk, "its chain does not end in a full copy");
    return layers;
  } catch (error) {
    for (const layer of layers) await layer.close();
    throw error;
  }
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

function chooseId(ids: readonly string[], at: string): string | undefined {
  if (at === "latest") return ids.at(-1);
  if (isPointId(at)) return ids.find((id) => id === at);
  const time = Date.parse(at);
  if (Number.isNaN(time)) {
    const message = `"${at}" is neither a point's id, nor a time such as 2026-11-20T11:32, nor latest`;
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
