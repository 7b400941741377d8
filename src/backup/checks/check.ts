/** What stands in the way of a backup, looked at before anything is begun: the shape of a question and of its answer. */
import { BackupError, PreconditionError } from "../base/errors.js";
import type { GuestDisk, Level } from "../guest/plan-disk.js";
import type { Forecast } from "../guest/plan-guest.js";
import type { Ssh } from "../host/ssh.js";
import type { TcpServer } from "../libvirt/begin-xml.js";
import type { HostSecurity } from "../libvirt/capabilities-xml.js";
import type { DomainDefinition } from "../libvirt/domain-xml.js";
import type { Virsh } from "../libvirt/virsh.js";
import type { Repository } from "../repository/repository.js";

/** What is looked at. All but the first are absent where nobody has asked for them, or where they could not be found out. */
export interface Subject {
  readonly virsh: Virsh;
  /** The domain's host, where that is another one. */
  readonly ssh?: Ssh | undefined;
  /** The folder under which a job would get a folder of its own. */
  readonly scratchParent: string;
  readonly repositoryPath?: string | undefined;
  /** Absent also where the first backup would make it. */
  readonly repository?: Repository | undefined;
  /** Bytes that have to be left there for scratch files; see `judgeScratch`. */
  readonly scratchReserve?: number | undefined;
  /** Left out: by a Unix socket. */
  readonly server?: TcpServer | undefined;
  /** As for a backup; empty: all mountpoints. */
  readonly freeze?: readonly string[] | undefined;
  readonly security?: HostSecurity | undefined;
  readonly domain?: DomainDefinition | undefined;
  /** Those that would take part. */
  readonly disks?: readonly GuestDisk[] | undefined;
  /** Of a domain that runs. */
  readonly forecast?: Forecast | undefined;
  readonly level?: Level | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** `warn`: a backup would be begun all the same. `fail`: it would certainly fail. */
export type CheckStatus = "pass" | "warn" | "fail";

/** An answer, before it is known to which question. */
export interface Found {
  /** What of it, where there are several: a disk, a checkpoint. */
  readonly of?: string | undefined;
  readonly status: CheckStatus;
  /** What was found. */
  readonly cause: string;
  /** The command that mends it. */
  readonly mend?: string | undefined;
  /** What failed: a backup is refused with it. */
  readonly error?: unknown;
}

export interface Check {
  readonly name: string;
  /** Whether there is no point in asking where libvirt doesn't answer. */
  readonly asksLibvirt: boolean;
  /** Whether a backup asks, and not `doctor` alone. */
  readonly beforeBackup: (subject: Subject) => boolean;
  readonly look: (subject: Subject) => Promise<readonly Found[]>;
}

export interface CheckResult extends Found {
  readonly check: string;
}

/** Asks one question. An error of whoever looks is an answer too, but for the signal's reason. */
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

/** The answer where looking has failed, or somebody else has found what would fail. */
export function failedBy(error: unknown, { domain }: Pick<Subject, "domain">): Found {
  const code = error instanceof BackupError ? error.code : "";
  const name = domain?.name ?? "DOMAIN";
  return {
    status: "fail",
    cause: error instanceof Error ? error.message : String(error),
    mend: MENDS[code]?.(name),
    error,
  };
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

/** Of errors that are found elsewhere, whose messages say in words what to do. */
const MENDS: Readonly<Record<string, (domain: string) => string>> = {
  E_NO_VIRSH: () => "apt install libvirt-clients",
  E_LIBVIRT: () => "systemctl start libvirtd",
  E_NO_SUCH_DOMAIN: () => "virsh list --all",
  E_DOMAIN_OFF: (domain) => `virsh start ${domain}`,
  E_DOMAIN_BUSY: (domain) => `virsh domjobinfo ${domain}`,
  E_FOREIGN_JOB: (domain) => `virsh domjobinfo ${domain}`,
  E_BACKUP_RUNNING: (domain) => `virsh domjobinfo ${domain}`,
  E_PUSH_MODE: (domain) => `virsh domjobinfo ${domain}`,
  E_NO_SUCH_DISK: (domain) => `virsh domblklist ${domain}`,
  E_DISK_UNFIT: (domain) => `virsh domblklist --details ${domain}`,
  E_NO_DISKS: (domain) => `virsh domblklist --details ${domain}`,
  E_NO_AGENT: () => "apt install qemu-guest-agent (in the guest)",
};
