import { PreconditionError } from "../base/errors.js";
import type { DomainDefinition, DomainDisk } from "./domain-xml.js";

/** Selects disks by their targets. */
export interface DiskChoice {
  /** Only these disks; empty: all that can take part. */
  readonly include: readonly string[];
  readonly exclude: readonly string[];
}

/**
 * The disks that take part, in the domain's order: all chosen disks with media that the guest can write.
 * @throws {PreconditionError} a named disk doesn't exist or can't take part, or no disk is left
 */
export function disksToBackUp(domain: DomainDefinition, { include, exclude }: DiskChoice): DomainDisk[] {
  for (const name of [...include, ...exclude]) {
    if (!domain.disks.some(({ target }) => target === name)) {
      const names = domain.disks.map(({ target }) => target).join(", ");
      throw new PreconditionError("E_NO_SUCH_DISK", `${domain.name} has no disk ${name}: it has ${names}`, {
        details: { domain: domain.name, disk: name },
      });
    }
  }
  const wanted = domain.disks.filter(({ target }) => include.length === 0 || include.includes(target));
  const chosen = wanted.filter(({ target }) => !exclude.includes(target));
  for (const disk of chosen) {
    const reason = obstacleOf(disk);
    if (reason !== undefined && include.includes(disk.target)) {
      const message = `the disk ${disk.target} of ${domain.name} can't be backed up: ${reason}`;
      throw new PreconditionError("E_DISK_UNFIT", message, { details: { disk: disk.target } });
    }
  }
  const fit = chosen.filter((disk) => obstacleOf(disk) === undefined);
  if (fit.length > 0) return fit;
  throw new PreconditionError("E_NO_DISKS", `no disk of ${domain.name} is left to back up`);
}

/** Why a disk can't take part in a backup; undefined if it can. */
export function obstacleOf(disk: DomainDisk): string | undefined {
  if (disk.device !== "disk" && disk.device !== "lun") return `it is a ${disk.device}`;
  if (disk.readOnly) return "the guest can't write to it";
  if (disk.source === undefined && (disk.type === "file" || disk.type === "block")) return "it is empty";
  return undefined;
}
