import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { ImageFormat } from "../../src/backup/image/image.js";
import { chooseDomain } from "../../src/backup/repository/choose-domain.js";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { type RestoredDisk, type RestoreOptions, restore } from "../../src/backup/restore/restore.js";

/** Restores one disk. By default the domain's folder has the name in the manifest. */
export async function restoreDisk(
  options: {
    readonly repository: Repository;
    readonly domain?: string;
    readonly point: Manifest;
    readonly diskName: string;
    readonly targetPath: string;
    readonly format: ImageFormat;
    readonly force: boolean;
    readonly sync: boolean;
  } & Pick<RestoreOptions, "window" | "rateLimit" | "signal">,
): Promise<RestoredDisk> {
  const { diskName, targetPath, format, domain = options.point.domain.name, ...rest } = options;
  const [disk] = await restore({ ...rest, domain, targets: [{ disk: diskName, path: targetPath, format }] });
  if (!disk) throw new Error("nothing was restored");
  return disk;
}

/**
 * Restores all disks of a point to raw images in a new folder. It takes a third of what the command takes.
 */
export async function restoreRaw(repo: string, name: string, id: string, folder: string): Promise<void> {
  const repository = await Repository.open(repo);
  const domain = await chooseDomain(repository, name, { at: id });
  const point = await repository.point(domain, id);
  const format = "raw" as const;
  const targets = point.disks.map(({ name: disk }) => ({ disk, path: join(folder, `${disk}.raw`), format }));
  await mkdir(folder);
  await repository.reading(domain, () =>
    restore({ repository, domain, point, targets, force: false, sync: false }),
  );
}

export type StoredPoint = Omit<Manifest, "checkpoint"> & { readonly checkpoint: string | null };

/** The points of a domain, oldest first; none if there is no repository. A damaged one is an error. */
export async function storedPoints(repo: string, domain: string): Promise<StoredPoint[]> {
  const repository = await Repository.openIfThere(repo);
  const points = await repository?.points(domain, (error) => {
    throw error;
  });
  return (points ?? []).map((point) => ({ ...point, checkpoint: point.checkpoint?.name ?? null }));
}
