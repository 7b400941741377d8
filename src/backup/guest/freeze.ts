import { BackupError, hasCode, messageOf } from "../base/errors.js";
import { domainWord } from "../base/shell-word.js";
import { freeze, thaw } from "../libvirt/freeze.js";
import { isJobGone } from "../libvirt/virsh.js";
import type { Guest } from "./guest.js";
import type { JobFolder } from "./job-folder.js";

/**
 * Runs `work` while the guest's file systems are frozen, and thaws them even if it fails.
 *
 * @param mountpoints in the guest; empty: all; undefined: nothing is frozen
 * @throws {PreconditionError} no agent answers in the guest
 */
export async function whileFrozen(
  guest: Pick<Guest, "virsh" | "domain">,
  folder: JobFolder,
  mountpoints: readonly string[] | undefined,
  work: () => Promise<void>,
): Promise<void> {
  if (mountpoints === undefined) return await work();
  await folder.markFrozen();
  try {
    await freeze(guest.virsh, guest.domain, mountpoints);
  } catch (error) {
    // Without an agent nothing was frozen; after any other error some file systems may be.
    if (hasCode(error, "E_NO_AGENT")) await folder.unmarkFrozen();
    else await thawGuest(guest, folder);
    throw error;
  }
  try {
    await work();
  } finally {
    await thawGuest(guest, folder);
  }
}

/** @throws {BackupError} `E_STILL_FROZEN` */
export async function thawGuest(
  { virsh, domain }: Pick<Guest, "virsh" | "domain">,
  folder: JobFolder,
): Promise<void> {
  try {
    await thaw(virsh, domain);
  } catch (cause) {
    // A guest that is off is no longer frozen.
    if (!isJobGone(cause)) {
      const message = `file systems of ${domain.name} may still be frozen, thawing failed (${messageOf(cause)}): run \`virsh domfsthaw ${domainWord(domain.name)}\` now`;
      throw new BackupError("E_STILL_FROZEN", message, { cause, details: { domain: domain.name } });
    }
  }
  await folder.unmarkFrozen();
}
