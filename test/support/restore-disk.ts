import type { ImageFormat } from "../../src/backup/image/image.js";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import type { Repository } from "../../src/backup/repository/repository.js";
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
