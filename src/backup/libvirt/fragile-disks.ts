import type { DomainDefinition } from "./documents/domain-xml.js";
import { type Libvirt, PATIENCE_MS } from "./libvirt.js";

/** What happens to a domain with fragile disks; the end of a sentence. */
export const FRAGILE =
  "QEMU 7.2 dies, and the guest with it, when an NBD client disconnects from a disk with an iothread before the backup job has ended";

/**
 * Whether clients have to stay connected until the job has ended, and may not be cut off: where a disk has an
 * iothread. QEMU's version is not asked for that, as it costs newer ones little.
 */
export function clientsMustStay({ disks }: Pick<DomainDefinition, "disks">): boolean {
  return disks.some(({ hasIothread }) => hasIothread);
}

/**
 * How long a libvirt that is away is waited for by who has to end a job: much longer where the guest would
 * not survive that the clients leave, as they do when it is given up.
 * @param usualMs as long as for any other question
 */
export function patienceToEnd(domain: Pick<DomainDefinition, "disks">, usualMs = PATIENCE_MS): number {
  return clientsMustStay(domain) ? PATIENCES * usualMs : usualMs;
}

const PATIENCES = 10;

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
