import { setTimeout as sleep } from "node:timers/promises";
import { BackupError, hasCode, messageOf } from "../base/errors.js";
import { domainWord } from "../base/shell-word.js";
import type { DomainDefinition } from "./documents/domain-xml.js";
import type { Libvirt } from "./libvirt.js";

/**
 * QEMU's connections are closed, and the job has ended, before libvirt knows that QEMU has: where the first
 * process is slow to reap others, two seconds before.
 */
const NOTICE_MS = 4000;
/** libvirt comes to the end of a QEMU half a minute late where another domain keeps it busy. */
const LATE_MS = 45_000;
/** `shut off (crashed)` and the like; the reason says who ended it. */
const ENDED = /^(?:shut off|crashed|in shutdown)/;
/** For how long libvirt is asked again while it ends the guest, and has no reason yet. */
const ENDING_MS = 2000;
/** Between two questions. */
const LOOK_MS = 100;

/**
 * The error that names the end of the guest, if that is why a backup of it failed.
 * @param error what the backup failed with
 * @param domain as it was when the backup began
 * @returns `E_GUEST_ENDED`; undefined while the same run of the domain goes on, or if libvirt doesn't say
 */
export async function guestEnd(
  libvirt: Libvirt,
  domain: DomainDefinition,
  error: unknown,
): Promise<BackupError | undefined> {
  const began = performance.now();
  let end = await endOf(libvirt, domain);
  while (end === undefined && mayComeBefore(error)) {
    const waitedMs = performance.now() - began;
    if (waitedMs >= NOTICE_MS && (waitedMs >= LATE_MS || !(await hasLostQemu(libvirt, domain)))) break;
    await sleep(LOOK_MS);
    end = await endOf(libvirt, domain);
  }
  if (end === undefined) return undefined;
  const { name } = domain;
  const message =
    `${name} ended during the backup (${end}), so nothing was committed. /var/log/libvirt/qemu/${name}.log on its ` +
    `host says more. What this backup has left goes with the next one: virsh start ${domainWord(name)}, and back it up again`;
  const details = { domain: name, state: end, failedWith: messageOf(error) };
  return new BackupError("E_GUEST_ENDED", message, { cause: error, details });
}

async function endOf(libvirt: Libvirt, domain: DomainDefinition): Promise<string | undefined> {
  try {
    let state = await libvirt.domainState(domain, { reason: true });
    for (let waited = 0; state.startsWith("in shutdown") && waited < ENDING_MS; waited += LOOK_MS) {
      await sleep(LOOK_MS);
      state = await libvirt.domainState(domain, { reason: true });
    }
    if (ENDED.test(state)) return `libvirt: ${state}`;
    const run = await libvirt.domainId(domain);
    if (run === domain.id) return undefined;
    if (run !== undefined) return "it was started anew since";
    // It ended between the two questions.
    return `libvirt: ${await libvirt.domainState(domain, { reason: true })}`;
  } catch (error) {
    return hasCode(error, "E_NO_SUCH_DOMAIN") ? "libvirt has forgotten it" : undefined;
  }
}

/** Whether libvirt has no QEMU any more that it could ask, though it has not come to its end yet. */
async function hasLostQemu(libvirt: Libvirt, domain: DomainDefinition): Promise<boolean> {
  return await libvirt.jobInfo(domain).then(
    () => false,
    (error: unknown) => hasCode(error, "E_DOMAIN_OFF"),
  );
}

/** Whether it is what the end of a guest shows itself by, a moment before. */
function mayComeBefore(error: unknown): boolean {
  return isHangUp(error) || hasCode(error, "E_JOB_ENDED");
}

/** Whether the server of the exports has hung up, as it does when the job or the guest ends. */
export function isHangUp(error: unknown): boolean {
  return ["NBD_CLOSED_BY_SERVER", "NBD_CONNECTION_LOST", "NBD_CONNECT_FAILED"].some((code) =>
    hasCode(error, code),
  );
}
