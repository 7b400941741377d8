import { isDeepStrictEqual } from "node:util";
import { type BackupJob, exportedDisks } from "../documents/job-xml.js";

/**
 * Whether two descriptions from the same run of a domain can belong to one job. A restarted libvirtd forgets
 * the names of exports and bitmaps, so these are not compared.
 */
export function canBeSameJob(one: BackupJob, other: BackupJob): boolean {
  return isDeepStrictEqual(traitsOf(one), traitsOf(other));
}

/**
 * Whether the description identifies the job. libvirt numbers the scratch nodes of a running QEMU, continues
 * after its own restarts, and never uses a number twice.
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
