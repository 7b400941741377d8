import type { DomainDefinition } from "./documents/domain-xml.js";
import type { Libvirt } from "./libvirt.js";

/** What happens to a domain with fragile disks; the end of a sentence. */
export const FRAGILE =
  "QEMU 7.2 dies, and the guest with it, when an NBD client disconnects from a disk with an iothread before the backup job has ended";

/**
 * The disks of a running domain that cost the guest its life when an NBD client leaves their exports before
 * the job has ended: those with an iothread, in QEMU 7.2. Newer versions of QEMU survive it.
 * @returns their targets; empty for most domains
 * @throws as every method of `Libvirt` does
 */
export async function fragileDisks(libvirt: Libvirt, domain: DomainDefinition): Promise<readonly string[]> {
  const disks = domain.disks.filter(({ hasIothread }) => hasIothread);
  if (disks.length === 0) return [];
  const isFragile = (await libvirt.versions()).hypervisor.startsWith("7.2.");
  return isFragile ? disks.map(({ target }) => target) : [];
}
