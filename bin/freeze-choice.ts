/** `--freeze`: what of a guest is frozen while its job begins. */
import { hasCode } from "../src/backup/base/errors.js";
import type { DomainRef, Libvirt } from "../src/backup/libvirt/libvirt.js";
import type { GuestOptions } from "./guest-options.js";

/**
 * @param onUnfrozen with `auto`, receives why nothing is frozen
 * @returns mountpoints in the guest; empty: all; undefined: nothing is frozen
 */
export async function freezeOf(
  libvirt: Libvirt,
  domain: DomainRef,
  { freeze }: Pick<GuestOptions, "freeze">,
  onUnfrozen: (why: string) => void,
): Promise<readonly string[] | undefined> {
  if (freeze === undefined || freeze === "no") return undefined;
  if (freeze === true) return [];
  if (freeze !== "auto") return freeze.split(",").filter((mountpoint) => mountpoint !== "");
  try {
    await libvirt.mountpoints(domain);
  } catch (error) {
    // Of a paused domain libvirt says that it isn't running. Other errors say nothing against freezing it.
    if (hasCode(error, "E_NO_AGENT")) {
      onUnfrozen("no agent answers in the guest, so its file systems are not frozen");
      return undefined;
    }
    if (hasCode(error, "E_DOMAIN_OFF") || hasCode(error, "E_NO_SUCH_DOMAIN")) return undefined;
  }
  return [];
}
