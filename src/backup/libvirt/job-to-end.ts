import type { JobInfo } from "./job-info.js";

/** What libvirt says of the job that runs on a domain. */
interface SeenJob {
  readonly info: JobInfo | undefined;
  readonly backupXml: string | undefined;
}

/** Tells the job that is to be ended, by its XML, from one that another program began after it. */
type IsOurs = (backupXml: string) => boolean;

/**
 * What is to be done about a job that was asked to end, or will be. `gone`: it has ended, and what runs now,
 * if anything does, is another's. `there`: it runs, and may be cancelled. `unclear`: a backup job of which
 * libvirt has no description: ours on its way out, or another's that begins; and likewise while libvirt is
 * too busy to tell.
 *
 * @param isOurs undefined: any backup job is the one to end
 */
export function judgeJob(
  seen: SeenJob | undefined,
  isOurs: IsOurs | undefined,
): "gone" | "there" | "unclear" {
  if (seen === undefined) return isOurs === undefined ? "there" : "unclear";
  if (!isBackupJob(seen)) return "gone";
  if (isOurs === undefined) return "there";
  if (seen.backupXml === undefined) return "unclear";
  return isThat(seen.backupXml, isOurs) ? "there" : "gone";
}

/**
 * Whether a backup job runs. It is gone only if both answers say so: its description goes first, and only
 * then can the next job begin.
 */
function isBackupJob({ info, backupXml }: SeenJob): boolean {
  return info?.active ? info.operation === "backup" : backupXml !== undefined;
}

function isThat(backupXml: string, isOurs: IsOurs): boolean {
  try {
    return isOurs(backupXml);
  } catch {
    // A job in push mode, for instance: the one to end could be read when it was opened.
    return false;
  }
}
