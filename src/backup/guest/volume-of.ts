import { BackupError, hasCode, messageOf, PreconditionError } from "../base/errors.js";
import type { DomainDefinition, DomainDisk } from "../libvirt/documents/domain-xml.js";
import type { Libvirt } from "../libvirt/libvirt.js";

/** Where a volume of a storage pool is. */
interface FoundVolume {
  /** On the hypervisor. */
  readonly path: string;
  /** `file`, `block`, `network`, … */
  readonly kind: string;
  /** Bytes that the guest sees, if libvirt tells. */
  readonly capacity: number | undefined;
}

/**
 * Asks libvirt's storage pools where a disk of type `volume` is; undefined for disks of other types.
 * @throws {PreconditionError} `E_NO_VOLUME`: the pool is not active, or there is no such pool or volume
 */
export async function volumeOf(
  libvirt: Libvirt,
  domain: DomainDefinition,
  { target, volume }: DomainDisk,
): Promise<FoundVolume | undefined> {
  if (!volume) return undefined;
  const { pool, name } = volume;
  try {
    return await libvirt.volume(pool, name);
  } catch (cause) {
    if (!(cause instanceof BackupError) || !hasCode(cause, "E_LIBVIRT_REFUSED")) throw cause;
    const message = `the disk ${target} of ${domain.name} is the volume ${name} of the storage pool ${pool}, and libvirt can't say where that is (${messageOf(cause)}): \`virsh pool-start\` starts a pool, \`virsh pool-refresh\` looks for its volumes; or leave the disk out with --exclude ${target}`;
    throw new PreconditionError("E_NO_VOLUME", message, {
      cause,
      details: { disk: target, pool, volume: name },
    });
  }
}
