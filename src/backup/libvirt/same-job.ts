import { isDeepStrictEqual } from "node:util";
import { type BackupJob, exportedDisks } from "./job-xml.js";

/**
 * Whether two descriptions of the same run of a domain can be of one job. A libvirtd that was restarted has forgotten how
 * exports and bitmaps are called, so those are not compared.
 */
export function canBeSameJob(one: BackupJob, other: BackupJob): boolean {
  return isDeepStrictEqual(traitsOf(one), traitsOf(other));
}

/**
 * Whether the description can be of no other job: libvirt numbers the scratch nodes of a running QEMU, over its own
 * restarts too, and never uses a number twice.
 */
export function isUnmistakable(job: BackupJob): boolean {
  return exportedDisks(job).every(({ index }) => index !== undefined);
}

function traitsOf(job: BackupJob): object {
  const disks = exportedDisks(job).map(({ name, mode, index, scratch, ...rest }) => {
    const base = "incremental" in rest ? rest.incremental : undefined;
    return { name, mode, base, index, scratch };
  });
  return { server: job.server, disks };
}
