import { BackupError, hasCode } from "../base/errors.js";
import { together } from "../base/in-parallel.js";
import type { DomainRef, Libvirt } from "./libvirt.js";
import { numberOf } from "./libvirt-errors.js";
import { NUMBER } from "./rpc/errors.js";
import * as remote from "./rpc/procedures.js";

/** With these libvirt says that it can't ask, and nothing of the job. */
const CANNOT_ASK: readonly (number | undefined)[] = [
  NUMBER.noSupport,
  NUMBER.configUnsupported,
  NUMBER.argumentUnsupported,
  NUMBER.operationUnsupported,
];

/**
 * Has QEMU confirm of each disk that its backup job runs, and so keeps what the guest writes over.
 *
 * libvirt can't tell that: it shows a job that QEMU has ended, and goes on serving its exports, until it
 * comes to QEMU's event; half a minute later, if another domain keeps it busy. Even QEMU's list of jobs has
 * it until then, and libvirt hands on no state. But QEMU refuses to set the speed of a job that has ended.
 * "No limit" is what a pull backup has anyway, so where the job runs, nothing changes.
 *
 * @returns QEMU's words of the first disk whose job it doesn't run; undefined if it runs all of them
 * @throws what `Libvirt` throws if it doesn't answer, can't ask or does not let us, or if the domain is off
 */
export async function endedInQemu(
  libvirt: Libvirt,
  domain: DomainRef,
  disks: readonly string[],
): Promise<string | undefined> {
  const asked = disks.map(async (path) => {
    try {
      await libvirt.ask(remote.DOMAIN_BLOCK_JOB_SET_SPEED, domain, { path, bandwidth: 0 });
      return undefined;
    } catch (error) {
      if (!(error instanceof BackupError) || !hasCode(error, "E_LIBVIRT_REFUSED")) throw error;
      if (CANNOT_ASK.includes(numberOf(error))) throw error;
      return `${path}: ${error.details["libvirt"]}`;
    }
  });
  return (await together(...asked)).find((said) => said !== undefined);
}
