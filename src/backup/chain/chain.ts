import { DamageError } from "../base/errors.js";
import { isFolder } from "../host/durable-files.js";
import type { ReadOptions } from "../image/image-file.js";
import type { DiskManifest, Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";
import { Layer } from "./layer.js";

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
