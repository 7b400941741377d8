import { BackupError, hasCode, messageOf, PreconditionError } from "../base/errors.js";
import { domainWord } from "../base/shell-word.js";
import { LateError, LostError, NUMBER, RpcError } from "./rpc/errors.js";
import type { Procedure } from "./rpc/procedure.js";

const BLOCK_JOB = /disk '([^']*)' has a blockjob assigned/;

/** Why a disk can't be backed up now: a block job (copy, commit, pull) runs on it. */
export function blockJobMessage(domain: string, disk: string, kind = "copy, commit or pull"): string {
  const command = `virsh blockjob ${domainWord(domain)} ${disk}`;
  return (
    `a block job (${kind}) runs on the disk ${disk} of ${domain}, and libvirt backs up no disk with one. Wait for its ` +
    `end (\`${command} --info\` shows it), complete it (--pivot) or end it (--abort), or leave the disk out with --exclude ${disk}`
  );
}

/** The facts that the messages name. */
export interface Asked {
  readonly procedure: Procedure<never, unknown>;
  /** The domain's name, or another subject; empty: libvirt as a whole. */
  readonly about: string;
  /** The connection's URI. */
  readonly uri: string;
}

interface Refusal extends Asked {
  readonly error: RpcError;
}

const OF_THE_AGENT: readonly string[] = [
  "DOMAIN_FSFREEZE",
  "DOMAIN_FSTHAW",
  "DOMAIN_GET_FSINFO",
  "DOMAIN_AGENT_COMMAND",
];

/** Of these, an invalid operation is one on a domain that is off. */
const NEED_A_RUN: readonly string[] = [
  ...["DOMAIN_BACKUP_GET_XML_DESC", "DOMAIN_CHECKPOINT_GET_XML_DESC", "DOMAIN_GET_JOB_STATS"],
  ...OF_THE_AGENT,
];

/**
 * What libvirt's errors mean, by number and procedure. Only where a number has many meanings the text
 * decides: the daemon gives it in the language of its host. The first match counts.
 */
const KNOWN_REFUSALS: readonly {
  readonly is: (refusal: {
    readonly number: number;
    readonly said: string;
    readonly procedure: string;
  }) => boolean;
  readonly code: string;
  readonly message: (refusal: Refusal) => string;
}[] = [
  {
    is: ({ number }) => number === NUMBER.noDomain,
    code: "E_NO_SUCH_DOMAIN",
    message: ({ about, uri }) =>
      `libvirt knows no domain ${about} at ${uri}. \`virsh list --all\` lists them; name another libvirt with --connect URI`,
  },
  {
    is: ({ number, said, procedure }) =>
      number === NUMBER.operationInvalid &&
      (NEED_A_RUN.includes(procedure) || /domain is not running/.test(said)),
    code: "E_DOMAIN_OFF",
    message: ({ about }) =>
      `the domain ${about} isn't running, so it has no job. Start it: virsh start ${domainWord(about)}`,
  },
  {
    // QEMU ended in the middle of a command. libvirt may still call the domain running for a moment.
    is: ({ said }) =>
      /Unable to (?:read from|write to) monitor|End of file from qemu monitor|QEMU monitor was closed|Error while processing monitor IO|Missing monitor reply|domain is no longer running/i.test(
        said,
      ),
    code: "E_DOMAIN_OFF",
    message: ({ about }) =>
      `the domain ${about} stopped while libvirt asked its QEMU. /var/log/libvirt/qemu/${about}.log on its host says ` +
      `why; start it again: virsh start ${domainWord(about)}`,
  },
  {
    is: ({ number, procedure }) =>
      number === NUMBER.noBackup || (number === NUMBER.operationInvalid && procedure === "DOMAIN_ABORT_JOB"),
    code: "E_NO_JOB",
    message: ({ about }) =>
      `no backup job runs on the domain ${about}. Begin one: virsh backup-begin ${domainWord(about)} BACKUP.xml CHECKPOINT.xml`,
  },
  {
    is: ({ number }) => number === NUMBER.noCheckpoint,
    code: "E_NO_CHECKPOINT",
    message: ({ about }) =>
      `the domain ${about} has no such checkpoint. \`virsh checkpoint-list ${domainWord(about)}\` lists them`,
  },
  {
    is: ({ number, procedure }) => number === NUMBER.argumentUnsupported && OF_THE_AGENT.includes(procedure),
    code: "E_NO_AGENT",
    message: ({ about }) =>
      `${about} has no channel to a guest agent, and only that can freeze file systems. Add one (\`virsh edit ` +
      `${domainWord(about)}\`: <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>), ` +
      "with qemu-guest-agent in the guest, or say --freeze no",
  },
  {
    // Nobody in the guest has opened the channel.
    is: ({ said }) => /QEMU guest agent is not connected/.test(said),
    code: "E_NO_AGENT",
    message: ({ about }) =>
      `no guest agent is connected in ${about}, and only that can freeze file systems. Install and start ` +
      "qemu-guest-agent in the guest (systemctl start qemu-guest-agent), or say --freeze no",
  },
  {
    // libvirt 9 says so from a reset of the guest during a job on, though the agent runs.
    is: ({ said }) => /Guest agent disappeared/.test(said),
    code: "E_NO_AGENT",
    message: ({ about }) =>
      `libvirt has lost the guest agent of ${about}, as it does when a guest is reset during a backup. Restart the ` +
      `guest (\`virsh reboot ${domainWord(about)}\`), or say --freeze no`,
  },
  {
    is: ({ number }) => number === NUMBER.agentUnresponsive,
    code: "E_NO_AGENT",
    message: ({ about }) =>
      `the guest agent of ${about} doesn't answer, and only that can freeze file systems. Restart it in the guest ` +
      "(systemctl restart qemu-guest-agent), or say --freeze no",
  },
  {
    is: ({ said }) =>
      /has been disabled: the agent is in frozen state|'guest-fsfreeze-freeze(?:-list)?': The command .* has been disabled/.test(
        said,
      ),
    code: "E_GUEST_FROZEN",
    message: ({ about }) =>
      `the file systems of ${about} are frozen already, and not by a backup to this repository: they were neither ` +
      `frozen nor thawed. Wait until they are thawed; if nobody will, \`virsh domfsthaw ${domainWord(about)}\``,
  },
  {
    is: ({ said }) => /'guest-fsfreeze-freeze(?:-list)?': .* has been disabled/.test(said),
    code: "E_NO_AGENT",
    message: ({ about }) =>
      `the guest agent of ${about} is told not to freeze file systems. Allow it in the guest (block-rpcs in ` +
      "qemu-ga.conf), or say --freeze no",
  },
  {
    is: ({ said }) =>
      /object-add'.*(?:credentials|certificate)|Unable to (?:access credentials|import server certificate)/i.test(
        said,
      ),
    code: "E_NO_CERTIFICATES",
    message: ({ about }) =>
      `the hypervisor can't serve the disks of ${about} by TLS: ca-cert.pem, server-cert.pem and server-key.pem ` +
      "have to be in its /etc/pki/libvirt-backup or /etc/pki/qemu (`backup_tls_x509_cert_dir` in qemu.conf), be valid, " +
      "and QEMU's user has to be able to read them",
  },
  {
    is: ({ said }) => BLOCK_JOB.test(said),
    code: "E_DOMAIN_BUSY",
    message: ({ about, error }) => blockJobMessage(about, BLOCK_JOB.exec(error.message)?.[1] ?? "DISK"),
  },
  {
    is: ({ number, said }) =>
      number === NUMBER.operationTimeout || /cannot acquire state change lock/.test(said),
    code: "E_DOMAIN_BUSY",
    message: ({ about }) =>
      `another operation holds the domain ${about}. See \`virsh domjobinfo ${domainWord(about)}\`, and try again when it is over`,
  },
  {
    is: ({ number }) => number === NUMBER.accessDenied || number === NUMBER.operationDenied,
    code: "E_LIBVIRT_ACCESS",
    message: ({ about }) =>
      `libvirt does not allow this user what a backup${about && ` of ${about}`} takes: its access rules (polkit) have to allow it, or run nbdpull by sudo`,
  },
];

/** The error for a call that was not answered as it should be; errors of other kinds stay what they are. */
export function failure(error: unknown, asked: Asked): unknown {
  const { procedure, about, uri } = asked;
  const details = { procedure: procedure.name, ...(about ? { domain: about } : {}), connect: uri };
  if (error instanceof LateError) {
    const what = `${procedure.name}${about && ` of ${about}`}`;
    const message = error.wasSent
      ? `libvirt gave no answer to ${what} in time: its QEMU may hang, or the connection to it may be down`
      : `libvirt could not be asked for ${what} (${error.message}): it or its QEMU may hang, or the connection to it may be down`;
    return new BackupError("E_LIBVIRT_TIMEOUT", message, { cause: error, details });
  }
  if (error instanceof LostError) return noAnswer(error, uri, details);
  if (!(error instanceof RpcError)) return error;
  const seen = { number: error.number, said: error.message, procedure: procedure.name };
  const known = KNOWN_REFUSALS.find(({ is }) => is(seen));
  const said = { libvirt: error.message, number: error.number };
  if (known !== undefined) {
    const message = `${known.message({ ...asked, error })} (libvirt: ${error.message})`;
    return new PreconditionError(known.code, message, { cause: error, details: { ...details, ...said } });
  }
  const message = `libvirt refused ${procedure.name}${about && ` of ${about}`}: ${error.message}`;
  return new BackupError("E_LIBVIRT_REFUSED", message, { cause: error, details: { ...details, ...said } });
}

function noAnswer(cause: LostError, uri: string, details: Record<string, unknown>): PreconditionError {
  const start = uri.includes("///session")
    ? "A session's libvirt is started by `libvirtd --timeout 120 -d`."
    : "Is libvirtd (or virtqemud) running there?";
  const message = `libvirt doesn't answer at ${uri} (${messageOf(cause)}). ${start} Name another libvirt with --connect URI`;
  return new PreconditionError("E_LIBVIRT", message, { cause, details });
}

/** Whether asking again may help: libvirt doesn't answer, as in a restart, or was not asked in time. */
export function mayAnswerLater(error: unknown): boolean {
  const cause = error instanceof BackupError ? error.cause : undefined;
  return hasCode(error, "E_LIBVIRT") || (cause instanceof LateError && !cause.wasSent);
}

/** Whether libvirt said that there is no job, or no domain: one defined only while it ran is gone too. */
export function isJobGone(error: unknown): boolean {
  return ["E_NO_JOB", "E_DOMAIN_OFF", "E_NO_SUCH_DOMAIN"].some((code) => hasCode(error, code));
}

/** The thread of libvirt that sees to a QEMU's events; in older versions it has the name of its function. */
const EVENT_THREAD = /\bmonitor=(?:qemu-event|qemuProcessEventHandler)\b/;

/**
 * Whether libvirt could not ask QEMU because, when half a minute was over, its thread for events held the
 * domain. So it is when QEMU 7.2 hangs: at the end of a backup's block jobs that thread has QEMU end its NBD
 * server, which waits for a client that doesn't read its replies. But that thread does other things too, and
 * others may have held the domain for most of that time.
 */
export function isHeldByEvent(error: unknown): boolean {
  const said = saidIn(error) ?? "";
  // Where `max_queued` is set, a full queue is refused at once, whoever holds the domain.
  return hasCode(error, "E_DOMAIN_BUSY") && EVENT_THREAD.test(said) && !said.includes("max_queued");
}

/** Resolves with undefined if there is no job, or no domain. */
export async function unlessGone<T>(answer: Promise<T>): Promise<T | undefined> {
  return await answer.catch((error: unknown) => {
    if (isJobGone(error)) return undefined;
    throw error;
  });
}

/** The number that libvirt gave an error (`virErrorNumber`). */
export function errorNumberOf(error: unknown): number | undefined {
  const number = error instanceof BackupError ? error.details["number"] : undefined;
  return typeof number === "number" ? number : undefined;
}

/** What libvirt said of it, in its own words. */
export function saidIn(error: unknown): string | undefined {
  const said = error instanceof BackupError ? error.details["libvirt"] : undefined;
  return typeof said === "string" ? said : undefined;
}
