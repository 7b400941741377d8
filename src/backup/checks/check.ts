/**
 * The checks room finds out, before a backup begins, what would make it fail. This file defines what a check
 * is: a `Check` looks at a `Subject` and returns what it `Found`. The other files hold the checks by topic
 * (host, guest, agent, bitmaps, bitmaps-in-images, scratch, target, tls).
 *
 * Read this file first, then list.ts, which has all checks in their order. preflight.ts runs them before a
 * backup of a running domain, doctor.ts runs all of them for `nbdpull doctor`. Checks never begin a job and
 * never change the guest, its checkpoints or its points. scratch.ts creates a trial folder and removes it
 * again; reading the repository finishes the last phase of a prune that died.
 */

import { BackupError, messageOf, PreconditionError } from "../base/errors.js";
import { domainWord } from "../base/shell-word.js";
import type { EncryptedPolicy } from "../guest/encrypted-disks.js";
import type { Level } from "../guest/levels.js";
import type { GuestDisk } from "../guest/plan-disk.js";
import type { Forecast } from "../guest/plan-guest.js";
import type { Ssh } from "../host/ssh.js";
import type { DiskChoice } from "../libvirt/choose-disks.js";
import type { TcpServer } from "../libvirt/documents/begin-xml.js";
import type { HostSecurity } from "../libvirt/documents/capabilities-xml.js";
import type { DomainDefinition } from "../libvirt/documents/domain-xml.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import type { Repository } from "../repository/repository.js";

/**
 * What the checks look at. Optional fields are absent if they were not asked for or could not be found out.
 */
export interface Subject {
  readonly libvirt: Libvirt;
  /** Connection to the domain's host, if that is another host. */
  readonly ssh?: Ssh | undefined;
  /** The folder under which a job would get a folder of its own. */
  readonly scratchParent: string;
  readonly repositoryPath?: string | undefined;
  /** Also absent if the first backup would create it. */
  readonly repository?: Repository | undefined;
  /** Whether it could not be found out if there is one: that has been told of, with the reason. */
  readonly isRepositoryUnknown?: boolean | undefined;
  /** Bytes that must stay free for scratch files; see `judgeScratch`. */
  readonly scratchReserve?: number | undefined;
  /** Undefined: the job is served on a Unix socket. */
  readonly server?: TcpServer | undefined;
  /** Mountpoints that the backup would freeze; empty: all. */
  readonly freeze?: readonly string[] | undefined;
  readonly security?: HostSecurity | undefined;
  readonly domain?: DomainDefinition | undefined;
  /** The disks that would be backed up. */
  readonly disks?: readonly GuestDisk[] | undefined;
  readonly choice?: DiskChoice | undefined;
  /** What the backup would do with disks that are encrypted on their host; default: warn. */
  readonly encrypted?: EncryptedPolicy | undefined;
  /** Only for a running domain. */
  readonly forecast?: Forecast | undefined;
  readonly level?: Level | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** `warn`: a backup would begin all the same. `fail`: it would certainly fail. */
export type CheckStatus = "pass" | "warn" | "fail";

/** One answer of a check, not yet labelled with the check's name. */
export interface Found {
  /** The disk, checkpoint or other part that the answer is about, if the check looks at several. */
  readonly of?: string | undefined;
  readonly status: CheckStatus;
  /** What was found. */
  readonly cause: string;
  /** The command that mends it. */
  readonly mend?: string | undefined;
  /** The error that a backup is refused with. */
  readonly error?: unknown;
}

export interface Check {
  readonly name: string;
  /** Whether the check needs libvirt, and is skipped if libvirt doesn't answer. */
  readonly asksLibvirt: boolean;
  /** Whether the backup of a running domain runs it for this subject, and not only `doctor`. */
  readonly beforeBackup: (subject: Subject) => boolean;
  readonly look: (subject: Subject) => Promise<readonly Found[]>;
}

export interface CheckResult extends Found {
  readonly check: string;
}

/** Runs one check. An error that it throws becomes an answer, except for the signal's reason. */
export async function ask(check: Check, subject: Subject): Promise<readonly CheckResult[]> {
  const answer = await look(check, subject);
  return answer.map((found) => ({
    ...found,
    check: found.of === undefined ? check.name : `${check.name} ${found.of}`,
  }));
}

async function look(check: Check, subject: Subject): Promise<readonly Found[]> {
  subject.signal?.throwIfAborted();
  try {
    return await check.look(subject);
  } catch (error) {
    subject.signal?.throwIfAborted();
    return [failedBy(error, subject)];
  }
}

/** The answer for an error that a check, or the preparation of the checks, has thrown. */
export function failedBy(error: unknown, { domain }: Pick<Subject, "domain">): Found {
  const code = error instanceof BackupError ? error.code : "";
  const name = domain?.name ?? "DOMAIN";
  return {
    status: "fail",
    cause: messageOf(error),
    mend: isOfSession(error) ? "libvirtd --timeout 120 -d" : MENDS[code]?.(name),
    error,
  };
}

/** Whether a session's libvirt doesn't answer, which no service of the system starts. */
function isOfSession(error: unknown): boolean {
  if (!(error instanceof BackupError) || error.code !== "E_LIBVIRT") return false;
  return String(error.details["connect"]).endsWith("///session");
}

export function pass(cause: string, of?: string): Found {
  return { status: "pass", cause, of };
}

export function warn(cause: string, mend?: string, of?: string): Found {
  return { status: "warn", cause, mend, of };
}

/** @param advice the rest of the error's message: what to do, in words */
export function fail(
  code: string,
  cause: string,
  {
    advice,
    mend,
    of,
    details,
  }: {
    readonly advice: string;
    readonly mend?: string;
    readonly of?: string;
    readonly details?: Record<string, unknown>;
  },
): Found {
  const error = new PreconditionError(code, `${cause}: ${advice}`, details === undefined ? {} : { details });
  return { status: "fail", cause, mend, of, error };
}

/** Commands that mend errors of other rooms, whose messages say only in words what to do. */
const MENDS: Readonly<Record<string, (domain: string) => string>> = {
  E_LIBVIRT: () => "systemctl start libvirtd",
  E_LIBVIRT_ACCESS: () => 'sudo usermod -aG libvirt "$USER"',
  E_NO_SUCH_DOMAIN: () => "virsh list --all",
  E_DOMAIN_OFF: (domain) => `virsh start ${domainWord(domain)}`,
  E_DOMAIN_BUSY: (domain) => `virsh domjobinfo ${domainWord(domain)}`,
  E_FOREIGN_JOB: (domain) => `virsh domjobinfo ${domainWord(domain)}`,
  E_BACKUP_RUNNING: (domain) => `virsh domjobinfo ${domainWord(domain)}`,
  E_PUSH_MODE: (domain) => `virsh domjobinfo ${domainWord(domain)}`,
  E_NO_SUCH_DISK: (domain) => `virsh domblklist ${domainWord(domain)}`,
  E_DISK_UNFIT: (domain) => `virsh domblklist --details ${domainWord(domain)}`,
  E_NO_VOLUME: () => "virsh pool-list --all",
  E_NO_DISKS: (domain) => `virsh domblklist --details ${domainWord(domain)}`,
  E_NO_MOUNTPOINT: (domain) => `virsh domfsinfo ${domainWord(domain)}`,
  E_GUEST_FROZEN: (domain) => `virsh domfsthaw ${domainWord(domain)}`,
  E_NO_AGENT: () => "apt install qemu-guest-agent (in the guest)",
};
