import { isUnreadable } from "../base/damage.js";
import { DamageError } from "../base/errors.js";
import type { Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";
import { findChain, type Link } from "./chain.js";
import { damage, failOnDamage, Layer } from "./layer.js";

/**
 * Looks at everything that a restore goes by, before it touches its targets: that the chains of these disks are whole,
 * that every layer opens and is the one that its manifest describes, and that tables and digest files are sound and fit
 * each other. Everything but the data itself, which is compared on its way.
 *
 * @throws {DamageError} names point and disk
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
      await checkLayer(repository.pointFolder(domain, link.point.id), link, signal);
    }
  }
}

async function checkLayer(folder: string, { point, disk }: Link, signal?: AbortSignal): Promise<void> {
  try {
    await using layer = await Layer.open(folder, point.id, disk);
    const runs = layer.runs(failOnDamage(layer));
    // To the very end: only there the digest file is proven.
    for await (const _ of runs) signal?.throwIfAborted();
  } catch (error) {
    if (isUnreadable(error)) throw damage(point.id, disk, `the file system cannot read it: ${error.message}`);
    // What a file alone says of itself doesn't tell whose it is.
    if (error instanceof DamageError && error.details["point"] === undefined) {
      throw error.of(`disk ${disk.name} of point ${point.id} is damaged: ${error.message}`, {
        point: point.id,
        disk: disk.name,
      });
    }
    throw error;
  }
}
