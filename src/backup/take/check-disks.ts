import { PreconditionError, UsageError } from "../base/errors.js";
import type { ImageFormat } from "../image/image.js";
import { domainFolder } from "../repository/domain-folder.js";
import { diskOf, isDiskName, isSame } from "../repository/manifest.js";
import { uuidOf } from "../repository/point-owners.js";
import type { PointDisk, TakePointOptions } from "./take-options.js";

/**
 * Disk names become file names, and may come from a document that is not trusted.
 * @throws {UsageError} `E_DISK_NAME`
 */
export function refuseStrangeNames(disks: readonly PointDisk[]): void {
  const seen = new Set<string>();
  for (const { name } of disks) {
    if (!isDiskName(name)) throw new UsageError("E_DISK_NAME", `"${name}" cannot be the name of a disk`);
    if (seen.has(name)) throw new UsageError("E_DISK_NAME", `the disk ${name} is named twice`);
    seen.add(name);
  }
}

/**
 * The disks with their parents as they are now. Parents were chosen before the lock was taken, so a prune may
 * have merged them into other points since, or other points into them.
 * @throws {PreconditionError} `E_NO_PARENT`
 */
export async function withParentsOfNow(
  { repository, disks }: TakePointOptions,
  home: string,
): Promise<readonly PointDisk[]> {
  const ids = await repository.pointIds(home);
  const now: PointDisk[] = [];
  for (const disk of disks) {
    const { name, increment } = disk;
    if (!increment) {
      now.push(disk);
      continue;
    }
    const { id } = increment.parent;
    if (!ids.includes(id)) {
      const message = `${name}: its parent ${id} was pruned meanwhile: try again`;
      throw new PreconditionError("E_NO_PARENT", message, { details: { disk: name } });
    }
    now.push({ ...disk, increment: { ...increment, parent: await repository.point(home, id) } });
  }
  return now;
}

/**
 * A chain never leads from one guest's disk to another's.
 * @throws {PreconditionError} `E_OTHER_DOMAIN`
 */
export function refuseForeignParents({ domain, disks }: TakePointOptions): void {
  for (const { name, increment } of disks) {
    if (!increment || isSame(uuidOf(increment.parent.domain), uuidOf(domain))) continue;
    const message = `${name}: its parent ${increment.parent.id} is of another domain, by its UUID`;
    throw new PreconditionError("E_OTHER_DOMAIN", message, { details: { disk: name } });
  }
}

/**
 * Another domain of this name may have got its first point since the folder was chosen.
 * @throws {PreconditionError} `E_OTHER_DOMAIN`
 */
export async function refuseOtherFolder(
  { repository, domain }: TakePointOptions,
  home: string,
): Promise<void> {
  if ((await domainFolder(repository, domain)) === home) return;
  const message = `another domain called ${domain.name} was backed up for the first time meanwhile, and nothing was stored: try again`;
  throw new PreconditionError("E_OTHER_DOMAIN", message, { details: { domain: domain.name } });
}

/**
 * QEMU would read the clean areas of a raw increment as zeroes if it were a backing file.
 * @throws {PreconditionError} `E_RAW_PARENT`
 */
export function refuseMixedChain(disk: PointDisk, format: ImageFormat): void {
  const parent = disk.increment && diskOf(disk.increment.parent, disk.name);
  if (format === "qcow2" && parent?.format === "raw" && parent.mode === "incremental") {
    const message = `${disk.name}: its parent ${disk.increment?.parent.id} is a raw increment, which cannot be the backing file of a qcow2 image: go on with --format raw, or take a full backup`;
    throw new PreconditionError("E_RAW_PARENT", message, { details: { disk: disk.name } });
  }
}
