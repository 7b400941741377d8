import { PreconditionError } from "../base/errors.js";
import type { DomainDefinition, DomainDisk } from "./documents/domain-xml.js";

/** Selects disks by their targets. */
export interface DiskChoice {
  /** Only these disks; empty: all that can take part. */
  readonly include: readonly string[];
  /** Not these. The domain need not have them. */
  readonly exclude: readonly string[];
}

/** A disk with media that takes no part, although nobody has excluded it. */
export interface LeftOutDisk {
  readonly disk: string;
  readonly reason: string;
  /** Whether the guest can write to it, so that something is missing in the point. */
  readonly isWritable: boolean;
}

/**
 * The disks that take part, in the domain's order: all chosen disks with media that the guest can write, and
 * of floppies those that are included by name.
 * @throws {PreconditionError} an included disk doesn't exist or can't take part, or no disk is left
 */
export function disksToBackUp(domain: DomainDefinition, { include, exclude }: DiskChoice): DomainDisk[] {
  for (const name of include) {
    if (!domain.disks.some(({ target }) => target === name)) {
      const known = domain.disks.map(({ target }) => target);
      const message = `${domain.name} has no disk ${name}: it has ${known.join(", ")}`;
      throw new PreconditionError("E_NO_SUCH_DISK", message, {
        details: { domain: domain.name, disk: name, known },
      });
    }
  }
  const wanted = domain.disks.filter(({ target }) => include.length === 0 || include.includes(target));
  const chosen = wanted.filter(({ target }) => !exclude.includes(target));
  for (const disk of chosen) {
    const reason = obstacleOf(disk, include);
    if (reason !== undefined && include.includes(disk.target)) {
      const message = `the disk ${disk.target} of ${domain.name} can't be backed up: ${reason}`;
      throw new PreconditionError("E_DISK_UNFIT", message, { details: { disk: disk.target } });
    }
  }
  const fit = chosen.filter((disk) => obstacleOf(disk, include) === undefined);
  if (fit.length > 0) return fit;
  throw new PreconditionError("E_NO_DISKS", `no disk of ${domain.name} is left to back up`, {
    details: { domain: domain.name },
  });
}

/** The disks that neither take part nor are excluded, but for empty drives. */
export function disksLeftOut(domain: DomainDefinition, { include, exclude }: DiskChoice): LeftOutDisk[] {
  if (include.length > 0) return [];
  return domain.disks.flatMap((disk) => {
    const reason = obstacleOf(disk, include);
    if (reason === undefined || isEmpty(disk) || exclude.includes(disk.target)) return [];
    return [{ disk: disk.target, reason, isWritable: disk.device !== "cdrom" && !disk.readOnly }];
  });
}

/** Why a disk can't take part in a backup; undefined if it can. */
export function obstacleOf(disk: DomainDisk, include: readonly string[]): string | undefined {
  if (disk.device === "cdrom") return "it is a cdrom";
  if (disk.readOnly) return "the guest can't write to it";
  if (isEmpty(disk)) return "it is empty";
  if (disk.transient) {
    return "it is transient, and libvirt backs up no such disk while the domain runs (its image can be while it is off)";
  }
  if (disk.device !== "floppy" || include.includes(disk.target)) return undefined;
  return "it is a floppy, which takes part only if --include names it";
}

function isEmpty({ source, type }: DomainDisk): boolean {
  return source === undefined && (type === "file" || type === "block");
}
