/**
 * One disk of a restore point, read through its backing chain. A *layer* is one image of the chain with its
 * digest file, if the point has digests; then every read compares the data with them.
 *
 * Read this file first: it finds and opens the layers. Then read layer.ts (one layer), agreed-runs.ts (where
 * image and digest file agree), checked-image.ts (data compared with digests), stored-runs.ts (what of a layer
 * has to be read to prove all of it), overlay.ts (what the layers show together) and chain-source.ts (the disk
 * as a source for a pull). open-images.ts opens images in threads. check-chains.ts checks whole chains before
 * a restore, sound-bases.ts whole points before an increment is based on them.
 *
 * This room reads only: it never writes to the repository. It doesn't use libvirt or the network; of NBD it
 * knows only the types of a read.
 */

import type { LimitFunction } from "p-limit";
import { isUnreadable } from "../base/damage.js";
import { DamageError, hasCode } from "../base/errors.js";
import { lookAtAll, openAll } from "../base/in-parallel.js";
import { type RecordedDamage, readDamage } from "../repository/damage-record.js";
import type { DiskManifest, Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import { damage, Layer, type LayerOptions } from "./layer.js";

/** One disk of one point, as the manifest describes it. */
export interface Link {
  readonly point: Manifest;
  readonly disk: DiskManifest;
}

/**
 * The backing chain of a disk at a point: from that point down to the full copy. The chain follows only
 * manifests, not file times or the backing names inside images. It can't contain a loop, because a manifest
 * whose parent isn't older than the point is refused.
 *
 * @param domain the name of its folder in the repository
 * @returns top first
 * @throws {DamageError} a point of the chain is missing or unreadable, or doesn't have the disk
 */
export async function findChain(
  repository: Repository,
  domain: string,
  point: Manifest,
  diskName: string,
): Promise<Link[]> {
  return await followChain(repository, domain, linkOf(domain, point, diskName));
}

/**
 * Like {@link findChain}, for whoever is waited for: from an object store, manifests of points just before a
 * parent are read together with its own, since most points are based on the one before.
 */
export async function findChainSoon(
  ...[repository, domain, point, diskName]: Parameters<typeof findChain>
): Promise<Link[]> {
  const top = linkOf(domain, point, diskName);
  if (!repository.isInStore) return await followChain(repository, domain, top);
  const guessed = new GuessedManifests(repository, domain);
  try {
    return await followChain(repository, domain, top, (id) => guessed.read(id));
  } finally {
    await guessed.settled();
  }
}

async function followChain(
  repository: Repository,
  domain: string,
  top: Link,
  read?: (id: string) => Promise<Manifest>,
): Promise<Link[]> {
  const links = [top];
  for (let link = top; link.disk.parent !== null; ) {
    link = await findParentLink(repository, domain, link, read);
    links.push(link);
  }
  return links;
}

/** Manifests that are read at a time. */
const GUESSES = 8;

/** Reads manifests of a domain, and with each those of the points before it. */
class GuessedManifests {
  readonly #repository: Repository;
  readonly #domain: string;
  readonly #reads = new Map<string, Promise<Manifest>>();

  constructor(repository: Repository, domain: string) {
    this.#repository = repository;
    this.#domain = domain;
  }

  /** @throws as {@link Repository.point} */
  async read(id: string): Promise<Manifest> {
    const known = this.#reads.get(id);
    if (known) return await known;
    const ids = await this.#repository.pointIds(this.#domain);
    const before = ids.slice(0, Math.max(0, ids.indexOf(id))).slice(1 - GUESSES);
    for (const each of [id, ...before]) {
      if (this.#reads.has(each)) continue;
      const reading = this.#repository.point(this.#domain, each);
      // Nobody may ever ask for it.
      reading.catch(() => undefined);
      this.#reads.set(each, reading);
    }
    return await (this.#reads.get(id) as Promise<Manifest>);
  }

  /** Nothing is being read any more. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.#reads.values());
  }
}

/**
 * The next link down the chain.
 * @param child an increment
 * @param read the manifest of a point; default: from the repository
 * @throws {DamageError} the parent is missing or unreadable, or doesn't have the disk
 */
export async function findParentLink(
  repository: Repository,
  domain: string,
  child: Link,
  read = (id: string): Promise<Manifest> => repository.point(domain, id),
): Promise<Link> {
  const { point, disk } = child;
  const parent = disk.parent ?? "";
  const needs = `point ${point.id} of ${domain} needs point ${parent} for disk ${disk.name}`;
  const isThere = await repository.hasPoint(domain, parent).catch((error: unknown) => {
    if (!hasCode(error, "E_LINK")) throw error;
    throw broken(`${needs}, and ${error.message}`, point.id, disk.name, parent);
  });
  if (!isThere) {
    const what = `${needs}, which is missing: bring its folder back, or restore a point that does not depend on it`;
    throw broken(what, point.id, disk.name, parent);
  }
  const found = await read(parent).catch((error: unknown) => {
    throw error instanceof DamageError ? error.of(error.message, { point: parent, disk: disk.name }) : error;
  });
  return linkOf(domain, found, disk.name);
}

function linkOf(domain: string, point: Manifest, diskName: string): Link {
  const disk = point.disks.find((candidate) => candidate.name === diskName);
  if (!disk) throw broken(`point ${point.id} of ${domain} has no disk ${diskName}`, point.id, diskName);
  return { point, disk };
}

/** @param missing id of the parent, if it is missing */
function broken(message: string, point: string, disk: string, missing?: string): DamageError {
  return new DamageError("E_CHAIN", message, { details: { point, disk, ...(missing ? { missing } : {}) } });
}

/**
 * Opens every layer of a chain. The caller closes them. If one fails to open, the others are closed.
 * @param options how their images are read; `limit` opens each, if others are opened beside this chain
 * @returns top first, in the order of `links`
 * @throws {DamageError} a file is missing or doesn't match its manifest
 */
export async function openChain(
  repository: Repository,
  domain: string,
  links: readonly Link[],
  { limit, ...options }: LayerOptions & { readonly limit?: LimitFunction | undefined } = {},
): Promise<Layer[]> {
  const atOnce = repository.isInStore ? OPENED_IN_STORE : 1;
  const open = async ({ point, disk }: Link): Promise<Layer> => {
    const folder = await repository.openPoint(domain, point.id);
    return await Layer.open(folder, point.id, disk, options).catch((error: unknown) => {
      throw isUnreadable(error) ? unreadable(point.id, disk, error) : error;
    });
  };
  return await openAll(links, atOnce, (link) => (limit ? limit(open, link) : open(link)));
}

function unreadable(id: string, disk: DiskManifest, { message }: Error): DamageError {
  return damage(id, disk, `the file system cannot read it: ${message}`);
}

/** Layers that are opened side by side: each has to wait for a few answers. */
const OPENED_IN_STORE = 16;

/**
 * Makes sure that no verify has found damage in what a disk needs at a point. Files are not looked at.
 * @throws {DamageError} one has; or a point of the chain is missing or unreadable
 */
export async function refuseKnownDamage(
  repository: Repository,
  domain: string,
  point: Manifest,
  disk: string,
): Promise<void> {
  const links = await findChainSoon(repository, domain, point, disk);
  await lookAtAll(
    links,
    repository.isInStore ? OPENED_IN_STORE : 1,
    async ({ point: { id }, disk: each }) => {
      try {
        await using folder = await repository.openPoint(domain, id);
        await refuseRecordedDamage(folder, id, each);
      } catch (error) {
        throw isUnreadable(error) ? unreadable(id, each, error) : error;
      }
    },
  );
}

/**
 * Looks at every layer that an increment on this disk would depend on: its files exist and have their ends,
 * their headers match the manifest, each entry of the image's tables is valid and leads into the file, and no
 * verify has found damage in it. Neither data nor digests are read.
 * @throws {DamageError} a point or a file of the chain is missing or damaged
 */
export async function proveChain(
  repository: Repository,
  domain: string,
  point: Manifest,
  disk: string,
): Promise<void> {
  for (const link of await findChain(repository, domain, point, disk)) {
    await proveLink(repository, domain, link);
  }
}

async function proveLink(repository: Repository, domain: string, { point, disk }: Link): Promise<void> {
  const folder = await repository.openPoint(domain, point.id);
  try {
    await refuseRecordedDamage(folder, point.id, disk);
    await using layer = await Layer.open(await repository.openPoint(domain, point.id), point.id, disk);
    await layer.checkTables();
  } catch (error) {
    throw isUnreadable(error) ? unreadable(point.id, disk, error) : error;
  } finally {
    await folder.close();
  }
}

/** @throws {DamageError} a verify has found the disk of this point damaged */
async function refuseRecordedDamage(
  folder: StoredFolder,
  pointId: string,
  disk: DiskManifest,
): Promise<void> {
  const record = await readDamage(folder);
  // This disk doesn't depend on others, or on what concerns the point as a whole, such as its NVRAM (that is
  // for sound-bases.ts); but a record that can't be read may be of the disk.
  const isOfDisk = (each: RecordedDamage): boolean =>
    each.disk === disk.name || record?.foundAt === undefined;
  const found = record?.places.find(isOfDisk);
  if (!found) return;
  const when = record?.foundAt === undefined ? "" : ` (found by the verify of ${record.foundAt})`;
  throw damage(pointId, disk, `${found.message}${when}`, found.guestOffset);
}
