import { setTimeout as sleep } from "node:timers/promises";
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
 */
export async function freeze(virsh: Virsh, domain: DomainRef, mountpoints: readonly string[]): Promise<void> {
  await virsh.run(
    "domfsfreeze",
    domain,
    mountpoints.flatMap((mountpoint) => ["--mountpoint", mountpoint]),
  );
}
