import { isUnreadable } from "../base/damage.js";
import { DamageError } from "../base/errors.js";
import type { Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import { findChain, type Link } from "./chain.js";
import { damage, failOnDamage, Layer } from "./layer.js";

/**
 * Checks everything but the data before a restore writes to its targets: the chains of these disks are
 * complete, every layer opens and matches its manifest, and tables and digest files are valid and agree. The
 * data is compared with its digests when the restore reads it.
 *
 * @param domain the name of its folder in the repository
 * @throws {DamageError} the first damage found; the error names point and disk
 * @throws the signal's reason
 */
export async function checkChains(
  repository: Repository,
  domain: string,
  point: Manifest,
  disks: readonly string[],
  signal?: AbortSignal,
): Promise<void> {
  for (const disk of disks) {
    for (const link of await findChain(repository, domain, point, disk)) {
      signal?.throwIfAborted();
      await checkLayer(await repository.openPoint(domain, link.point.id), link, signal);
    }
  }
}

async function checkLayer(folder: StoredFolder, { point, disk }: Link, signal?: AbortSignal): Promise<void> {
  try {
    await using layer = await Layer.open(folder, point.id, disk, { signal });
    const runs = layer.runs(failOnDamage(layer));
    // The SHA-256 of the digest file is compared at its end, so all runs must be read.
    for await (const _ of runs) signal?.throwIfAborted();
  } catch (error) {
    if (isUnreadable(error)) throw damage(point.id, disk, `the file system cannot read it: ${error.message}`);
    // An error about a file alone names neither point nor disk, so they are added here.
    if (error instanceof DamageError && error.details["point"] === undefined) {
      throw error.of(`disk ${disk.name} of point ${point.id} is damaged: ${error.message}`, {
        point: point.id,
        disk: disk.name,
      });
    }
    throw error;
  }
}
