import { BackupError, hasCode, messageOf } from "../base/errors.js";
import { domainWord } from "../base/shell-word.js";
import type { DomainDefinition } from "../libvirt/documents/domain-xml.js";
import { freeze, thaw } from "../libvirt/freeze.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import type { Guest } from "./guest.js";
import type { JobFolder } from "./job-folder.js";

/**
 * Runs `work` while the guest's file systems are frozen, and thaws them even if it fails.
 *
 * @param mountpoints in the guest; empty: all; undefined: nothing is frozen
 * @throws {PreconditionError} no agent answers in the guest; `E_GUEST_FROZEN`: somebody else froze it, and it
 *   stays frozen; `E_NO_MOUNTPOINT`
 */
export async function whileFrozen(
  guest: Pick<Guest, "libvirt" | "domain">,
  folder: JobFolder,
  mountpoints: readonly string[] | undefined,
  work: () => Promise<void>,
): Promise<void> {
  if (mountpoints === undefined) return await work();
  await folder.markFrozen(guest.domain);
  try {
    await freeze(guest.libvirt, guest.domain, mountpoints);
  } catch (error) {
    if (isBeforeFreezing(error)) await folder.unmarkFrozen();
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
  { libvirt, domain }: Pick<Guest, "libvirt" | "domain">,
  folder: JobFolder,
): Promise<void> {
  try {
    await thaw(libvirt, domain);
  } catch (cause) {
    // A guest that is off is no longer frozen, but one that is paused is, and its agent doesn't answer
    // either.
    if (!(await isOff(libvirt, domain, cause))) {
      const name = domainWord(domain.name);
      const isPaused = hasCode(cause, "E_DOMAIN_OFF");
      const why = isPaused ? "the guest is paused" : messageOf(cause);
      const mend = `${isPaused ? `virsh resume ${name}; ` : ""}virsh domfsthaw ${name}`;
      const message = `file systems of ${domain.name} may still be frozen, thawing failed (${why}): run \`${mend}\` now`;
      throw new BackupError("E_STILL_FROZEN", message, { cause, details: { domain: domain.name } });
    }
  }
  await folder.unmarkFrozen();
}

/**
 * Whether the run of the domain has ended that was frozen.
 * @param cause what libvirt refused the thawing with
 */
async function isOff(libvirt: Libvirt, domain: DomainDefinition, cause: unknown): Promise<boolean> {
  if (hasCode(cause, "E_NO_SUCH_DOMAIN")) return true;
  return hasCode(cause, "E_DOMAIN_OFF") && (await libvirt.domainId(domain)) !== domain.id;
}

/**
 * Whether the agent has certainly not begun to freeze. After other errors some file systems may be frozen;
 * where it found none to freeze, it has run its hooks, and waits to be thawed.
 */
function isBeforeFreezing(error: unknown): boolean {
  const codes = ["E_NO_AGENT", "E_GUEST_FROZEN"];
  return codes.some((code) => hasCode(error, code)) && !messageOf(error).includes("disappeared");
}
