import { BackupError, hasCode } from "../../base/errors.js";
import { together } from "../../base/in-parallel.js";
import type { DomainRef, Libvirt } from "../libvirt.js";
import { errorNumberOf } from "../libvirt-errors.js";
import { NUMBER } from "../rpc/errors.js";
import * as remote from "../rpc/procedures.js";

/** With these libvirt says that it can't ask, and nothing of the job. */
const CANNOT_ASK: readonly (number | undefined)[] = [
  NUMBER.noSupport,
  NUMBER.configUnsupported,
  NUMBER.argumentUnsupported,
  NUMBER.operationUnsupported,
];

/**
 * Since which version libvirt is not asked for the speed of a job: 9.0 sets it, 11.3 waits for half a minute
 * for the backup job's own lock and refuses. What the versions between do was not tried.
 */
const KEEPS_SPEED_SINCE = [9, 1] as const;

/**
 * Has QEMU confirm of each disk that its backup job runs, and so keeps what the guest writes over. Where
 * libvirt does not let it be asked, libvirt tells at least whether it was told to cancel any.
 *
 * libvirt can't tell that: it shows a job that QEMU has ended, and goes on serving its exports, until it
 * comes to QEMU's event; half a minute later, if another domain keeps it busy. Even QEMU's list of jobs has
 * it until then, and libvirt hands on no state. But QEMU refuses to set the speed of a job that has ended.
 * "No limit" is what a pull backup has anyway, so where the job runs, nothing changes.
 *
 * What libvirt does know at once is that somebody had it cancel a disk's job: it counts the scratch space of
 * such a disk no more. A pull job hardly ends otherwise: it reads nothing by itself that could fail. But
 * where QEMU is not asked, an end that another client of its monitor made goes unnoticed until libvirt comes
 * to it.
 *
 * @returns the words of QEMU, or ours, of a disk whose job it doesn't run; undefined if it runs all of them
 * @throws what `Libvirt` throws if it doesn't answer, can't ask or does not let us, or if the domain is off
 */
export async function endedInQemu(
  libvirt: Libvirt,
  domain: DomainRef,
  disks: readonly string[],
): Promise<string | undefined> {
  return keepsSpeed(await libvirt.version())
    ? await cancelledDisks(libvirt, domain, disks)
    : await refusedSpeed(libvirt, domain, disks);
}

function keepsSpeed(version: string): boolean {
  const [major = 0, minor = 0] = version.split(".").map(Number);
  const [since, sinceMinor] = KEEPS_SPEED_SINCE;
  return major > since || (major === since && minor >= sinceMinor);
}

async function cancelledDisks(
  libvirt: Libvirt,
  domain: DomainRef,
  disks: readonly string[],
): Promise<string | undefined> {
  const sizes = await together(...disks.map((disk) => libvirt.diskSize(domain, disk)));
  const size = sizes.reduce((sum, each) => sum + each, 0);
  // Without a job there is no answer here. Of a job without a disk that runs, libvirt names no scratch space.
  const { active, scratchTotal = 0 } = await libvirt.jobInfo(domain);
  if (!active || scratchTotal >= size) return undefined;
  return `it was told to cancel it: scratch space of ${scratchTotal} bytes is counted for disks of ${size}`;
}

async function refusedSpeed(
  libvirt: Libvirt,
  domain: DomainRef,
  disks: readonly string[],
): Promise<string | undefined> {
  const asked = disks.map(async (path) => {
    try {
      await libvirt.calls.ask(remote.DOMAIN_BLOCK_JOB_SET_SPEED, domain, { path, bandwidth: 0 });
      return undefined;
    } catch (error) {
      if (!(error instanceof BackupError) || !hasCode(error, "E_LIBVIRT_REFUSED")) throw error;
      if (CANNOT_ASK.includes(errorNumberOf(error))) throw error;
      return `${path}: ${error.details["libvirt"]}`;
    }
  });
  return (await together(...asked)).find((said) => said !== undefined);
}
