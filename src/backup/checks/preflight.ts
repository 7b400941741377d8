import type { Level } from "../guest/levels.js";
import type { GuestDisk } from "../guest/plan-disk.js";
import { type Forecast, forecast } from "../guest/plan-guest.js";
import type { ImageFormat } from "../image/image.js";
import type { DomainDefinition } from "../libvirt/documents/domain-xml.js";
import { Repository } from "../repository/repository.js";
import { ask, type Check, type Subject } from "./check.js";
import { CHECKS, JOB } from "./list.js";

interface PreflightOptions
  extends Pick<
    Subject,
    "libvirt" | "ssh" | "scratchParent" | "scratchReserve" | "server" | "freeze" | "signal"
  > {
  readonly repositoryPath: string;
  /** A running domain. */
  readonly domain: DomainDefinition;
  readonly disks: readonly GuestDisk[];
  readonly level: Level;
  readonly format: ImageFormat;
  readonly onWarning?: ((message: string) => void) | undefined;
}

/**
 * Looks for everything that would make the backup of a running domain fail, before anything is created or
 * begun. A mere risk becomes a warning.
 *
 * @throws {PreconditionError} or another error of the backup, for the first check that fails
 */
export async function preflight(options: PreflightOptions): Promise<Forecast> {
  const { libvirt, domain, disks } = options;
  const repository = await Repository.openIfThere(options.repositoryPath, { signal: options.signal });
  const subject: Subject = { ...options, repository };
  await pass(JOB, subject, options);
  const guest = { libvirt, domain, ...(repository ? { repository } : {}) };
  // No warnings about damaged points here: the backup itself plans again and gives them then.
  const foreseen = await forecast(guest, disks, { ...options, broken: new Map(), onWarning: undefined });
  for (const check of CHECKS) {
    if (check === JOB || !check.beforeBackup(subject)) continue;
    await pass(check, { ...subject, forecast: foreseen }, options);
  }
  return foreseen;
}

async function pass(check: Check, subject: Subject, { onWarning }: PreflightOptions): Promise<void> {
  for (const { status, cause, mend, error } of await ask(check, subject)) {
    if (status === "fail") throw error;
    if (status === "warn") onWarning?.(mend === undefined ? cause : `${cause}. To mend it: ${mend}`);
  }
}
