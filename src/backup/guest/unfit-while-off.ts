/** What keeps a domain that is off, or one of its disks, from being read, though a running one could be. */

import { PreconditionError } from "../base/errors.js";
import type { DomainDefinition, DomainDisk } from "../libvirt/documents/domain-xml.js";
import type { Libvirt } from "../libvirt/libvirt.js";

/**
 * @throws {PreconditionError} `E_DISK_UNFIT`: the disk's content is not in an image file or block device of
 * this host
 */
export function refuseUnfit(domain: DomainDefinition, disk: DomainDisk): void {
  const { target, type, source, volume, between, isEncrypted } = disk;
  if (between !== undefined) throw unfit(domain, target, `has ${between}`);
  // libvirt calls LUKS a raw image that has encryption, and read as a raw one it is cipher text.
  if (isEncrypted) throw unfit(domain, target, "has an encrypted image in its backing chain");
  const isHere = ((type === "file" || type === "block") && source !== undefined) || volume !== undefined;
  if (!isHere) throw unfit(domain, target, `is of type ${type}`);
}

export function unfit(domain: DomainDefinition, disk: string, what: string): PreconditionError {
  const message = `the disk ${disk} of ${domain.name} ${what}, and can't be read while the domain is off: start it, or leave the disk out with --exclude ${disk}`;
  return new PreconditionError("E_DISK_UNFIT", message, { details: { disk } });
}

/** @throws {PreconditionError} `E_REMOTE`: libvirt is another host's */
export async function refuseRemote(libvirt: Libvirt, domain: DomainDefinition): Promise<void> {
  const host = await libvirt.remoteHost();
  if (host === undefined) return;
  const message = `${domain.name} is off, and libvirt runs on ${host}: its disks can be read there only. Run nbdpull there, or start the domain`;
  throw new PreconditionError("E_REMOTE", message, { details: { host } });
}
