import { PreconditionError } from "../base/errors.js";
import { domainWord } from "../base/shell-word.js";
import type { DomainDefinition } from "../libvirt/documents/domain-xml.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import { refuseAnyJob } from "./claim.js";

/**
 * Call it before checkpoints of a domain are deleted. While a job runs, libvirt would let each deletion wait
 * for half a minute.
 * @throws {PreconditionError} `E_DOMAIN_OFF`; `E_FOREIGN_JOB` and the like: a job runs on it
 */
export async function refuseRetiring(libvirt: Libvirt, domain: DomainDefinition): Promise<void> {
  if (domain.id === undefined) {
    const message = `${domain.name} is off, and libvirt deletes checkpoints and their bitmaps only while a domain runs. Start it first: virsh start ${domainWord(domain.name)}`;
    throw new PreconditionError("E_DOMAIN_OFF", message, { details: { domain: domain.name } });
  }
  await refuseAnyJob({ libvirt, domain });
}
