import { setTimeout as sleep } from "node:timers/promises";
import { PreconditionError } from "../base/errors.js";
import { domainWord } from "../base/shell-word.js";
import type { DomainRef, Virsh } from "./virsh.js";

const THAW_ATTEMPTS = 3;
const THAW_RETRY_MS = 1000;

/**
 * Thaws the guest's file systems. Retries, since a guest that stays frozen is worse than any failed backup.
 * @throws the error of `Virsh` at the last attempt
 */
export async function thaw(virsh: Virsh, domain: DomainRef): Promise<void> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      await virsh.run("domfsthaw", domain);
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
export async function freeze(virsh: Virsh, domain: DomainRef, mountpoints: readonly string[]): Promise<void> {
  const named = mountpoints.flatMap((mountpoint) => ["--mountpoint", mountpoint]);
  const said = await virsh.run("domfsfreeze", domain, named);
  // The agent passes over mountpoints that it doesn't know.
  if (mountpoints.length > 0 && /^Froze 0 /m.test(said)) throw noMountpoint(domain, mountpoints);
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
