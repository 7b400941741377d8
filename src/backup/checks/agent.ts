/** Checks the guest's agent, which `--freeze` needs, and whether the guest is frozen or paused. */

import { hasCode, messageOf } from "../base/errors.js";
import { domainWord } from "../base/shell-word.js";
import { findLeft } from "../guest/claim.js";
import { keyOf } from "../guest/guest.js";
import { JobFolder } from "../guest/job-folder.js";
import type { DomainDefinition } from "../libvirt/documents/domain-xml.js";
import { noMountpoint } from "../libvirt/freeze.js";
import { type Found, fail, failedBy, pass, type Subject, warn } from "./check.js";

const MEND = "systemctl restart qemu-guest-agent (in the guest)";

export async function lookAtAgent(subject: Subject): Promise<readonly Found[]> {
  const { libvirt, domain, freeze } = subject;
  if (domain?.id === undefined) return [];
  try {
    const there = await libvirt.mountpoints(domain);
    const missing = (freeze ?? []).filter((mountpoint) => !there.includes(mountpoint));
    if (missing.length > 0) return [failedBy(noMountpoint(domain, missing, there), { domain })];
    return [pass(`it answers, and can freeze ${there.join(", ")}`)];
  } catch (error) {
    return [await withoutAnswer(error, domain, subject)];
  }
}

/** @param error why the agent's file systems are not known */
async function withoutAnswer(error: unknown, domain: DomainDefinition, subject: Subject): Promise<Found> {
  const { libvirt, freeze } = subject;
  if (hasCode(error, "E_GUEST_FROZEN")) {
    if (await wasLeftFrozen(domain, subject)) {
      return pass("a dead backup left the file systems frozen: the next backup thaws them first");
    }
    if (freeze !== undefined) return failedBy(error, { domain });
    const cause =
      "its file systems are frozen, so the guest can't write, and no backup to this repository did it";
    return warn(cause, `virsh domfsthaw ${domainWord(domain.name)}`);
  }
  // libvirt says of a paused domain that it isn't running.
  const state = await libvirt.domainState(domain);
  if (state === "paused") {
    if (freeze === undefined) return pass("the guest is paused, so none answers; only --freeze needs one");
    const mend = `virsh resume ${domainWord(domain.name)}`;
    const advice = `resume it (\`${mend}\`), or say --freeze no`;
    const cause = `${domain.name} is paused, so its agent can't freeze file systems`;
    return fail("E_GUEST_PAUSED", cause, { advice, mend, details: { domain: domain.name } });
  }
  if (freeze === undefined) return pass("none answers; only --freeze needs one");
  if (hasCode(error, "E_NO_AGENT")) return failedBy(error, { domain });
  // Some agents can freeze file systems but not list them.
  return warn(`it answers, but not which file systems there are (${messageOf(error)})`, MEND);
}

/** Whether a backup to this repository died while the guest was frozen. */
async function wasLeftFrozen(domain: DomainDefinition, subject: Subject): Promise<boolean> {
  const { libvirt, repository, scratchParent, ssh } = subject;
  if (!repository) return false;
  const guest = { libvirt, domain, repository, ssh };
  const { folders } = await findLeft(guest, await JobFolder.find(scratchParent, keyOf(guest), ssh));
  for (const folder of folders) if (await folder.isMarkedFrozen(domain)) return true;
  return false;
}
