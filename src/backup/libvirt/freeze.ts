import { setTimeout as sleep } from "node:timers/promises";
import { PreconditionError } from "../base/errors.js";
import { domainWord } from "../base/shell-word.js";
import type { DomainRef, Libvirt } from "./libvirt.js";

const THAW_ATTEMPTS = 3;
const THAW_RETRY_MS = 1000;

/**
 * Thaws the guest's file systems. Retries, since a guest that stays frozen is worse than any failed backup.
 * @throws the error of `Libvirt` at the last attempt
 */
export async function thaw(libvirt: Libvirt, domain: DomainRef): Promise<void> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      await libvirt.thaw(domain);
      return;
    } catch (error) {
      if (attempt === THAW_ATTEMPTS) throw error;
    }
    await sleep(THAW_RETRY_MS);
  }
}

/**
 * Asks the guest's agent to flush and freeze file systems.
 * @param mountpoints in the guest; empty: all
 * @throws {PreconditionError} `E_NO_MOUNTPOINT`: of `mountpoints`, none is there; `E_GUEST_FROZEN`
 */
export async function freeze(
  libvirt: Libvirt,
  domain: DomainRef,
  mountpoints: readonly string[],
): Promise<void> {
  const frozen = await libvirt.freeze(domain, mountpoints);
  // The agent passes over mountpoints that it doesn't know.
  if (mountpoints.length > 0 && frozen === 0) throw noMountpoint(domain, mountpoints);
}

/** @param there what the guest has, if that is known */
export function noMountpoint(
  domain: DomainRef,
  missing: readonly string[],
  there: readonly string[] = [],
): PreconditionError {
  const name = typeof domain === "string" ? domain : domain.name;
  const has = there.length > 0 ? ` It has ${there.join(", ")}.` : "";
  const message = `${name} has nothing mounted at ${missing.join(", ")} that its agent could freeze.${has} \`virsh domfsinfo ${domainWord(name)}\` lists them as --freeze has to name them`;
  return new PreconditionError("E_NO_MOUNTPOINT", message, { details: { domain: name, missing } });
}
