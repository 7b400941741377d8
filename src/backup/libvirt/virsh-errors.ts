import { BackupError, hasCode, PreconditionError } from "../base/errors.js";
import { domainWord } from "../base/shell-word.js";

const BLOCK_JOB = /disk '([^']*)' has a blockjob assigned/;

/** Why a disk can't be backed up now: a block job (copy, commit, pull) runs on it. */
export function blockJobMessage(domain: string, disk: string, kind = "copy, commit or pull"): string {
  const command = `virsh blockjob ${domainWord(domain)} ${disk}`;
  return (
    `a block job (${kind}) runs on the disk ${disk} of ${domain}, and libvirt backs up no disk with one. Wait for its ` +
    `end (\`${command} --info\` shows it), complete it (--pivot) or end it (--abort), or leave the disk out with --exclude ${disk}`
  );
}

/** What virsh printed, and the facts that the messages name. */
interface VirshFailure {
  readonly stderr: string;
  readonly domain: string;
  readonly connect: string | undefined;
}

/**
 * virsh exits with 1 after every error, but in the C locale its messages are libvirt's own texts, which
 * haven't changed since 6.0. The first match counts.
 */
const KNOWN_FAILURES: readonly {
  readonly said: RegExp;
  readonly code: string;
  readonly message: (failure: VirshFailure) => string;
}[] = [
  {
    said: /failed to connect to the hypervisor|Disconnected from|End of file while reading data|socket is closed/,
    code: "E_LIBVIRT",
    message: ({ connect }) =>
      `libvirt doesn't answer at ${connect ?? "the default URI"}. Is libvirtd running there, and may this user ` +
      "reach it (group libvirt)? Name another libvirt with --connect URI",
  },
  {
    said: /failed to get domain|Domain not found/i,
    code: "E_NO_SUCH_DOMAIN",
    message: ({ domain, connect }) =>
      `libvirt knows no domain ${domain} at ${connect ?? "the default URI"}. \`virsh list --all\` lists them; ` +
      "name another libvirt with --connect URI",
  },
  {
    said: /domain is not running/,
    code: "E_DOMAIN_OFF",
    message: ({ domain }) =>
      `the domain ${domain} isn't running, so it has no job. Start it: virsh start ${domainWord(domain)}`,
  },
  {
    // QEMU ended in the middle of a command. libvirt may still call the domain running for a moment.
    said: /Unable to (?:read from|write to) monitor|End of file from qemu monitor|QEMU monitor was closed|Error while processing monitor IO|Missing monitor reply|domain is no longer running/i,
    code: "E_DOMAIN_OFF",
    message: ({ domain }) =>
      `the domain ${domain} stopped while libvirt asked its QEMU. /var/log/libvirt/qemu/${domain}.log on its host says ` +
      `why; start it again: virsh start ${domainWord(domain)}`,
  },
  {
    said: /no domain backup job present|no job is active/,
    code: "E_NO_JOB",
    message: ({ domain }) =>
      `no backup job runs on the domain ${domain}. Begin one: virsh backup-begin ${domainWord(domain)} BACKUP.xml CHECKPOINT.xml`,
  },
  {
    said: /Domain checkpoint not found/,
    code: "E_NO_CHECKPOINT",
    message: ({ domain }) =>
      `the domain ${domain} has no such checkpoint. \`virsh checkpoint-list ${domainWord(domain)}\` lists them`,
  },
  {
    said: /QEMU guest agent is not configured/,
    code: "E_NO_AGENT",
    message: ({ domain }) =>
      `${domain} has no channel to a guest agent, and only that can freeze file systems. Add one (\`virsh edit ` +
      `${domainWord(domain)}\`: <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>), ` +
      "with qemu-guest-agent in the guest, or leave --freeze out",
  },
  {
    // Nobody in the guest has opened the channel.
    said: /QEMU guest agent is not connected/,
    code: "E_NO_AGENT",
    message: ({ domain }) =>
      `no guest agent is connected in ${domain}, and only that can freeze file systems. Install and start ` +
      "qemu-guest-agent in the guest (systemctl start qemu-guest-agent), or leave --freeze out",
  },
  {
    // libvirt 9 says so from a reset of the guest during a job on, though the agent runs.
    said: /Guest agent disappeared/,
    code: "E_NO_AGENT",
    message: ({ domain }) =>
      `libvirt has lost the guest agent of ${domain}, as it does when a guest is reset during a backup. Restart the ` +
      `guest (\`virsh reboot ${domainWord(domain)}\`), or leave --freeze out`,
  },
  {
    said: /Guest agent is not responding/,
    code: "E_NO_AGENT",
    message: ({ domain }) =>
      `the guest agent of ${domain} doesn't answer, and only that can freeze file systems. Restart it in the guest ` +
      "(systemctl restart qemu-guest-agent), or leave --freeze out",
  },
  {
    said: /has been disabled: the agent is in frozen state|'guest-fsfreeze-freeze(?:-list)?': The command .* has been disabled/,
    code: "E_GUEST_FROZEN",
    message: ({ domain }) =>
      `the file systems of ${domain} are frozen already, and not by a backup to this repository: they were neither ` +
      `frozen nor thawed. Wait until they are thawed; if nobody will, \`virsh domfsthaw ${domainWord(domain)}\``,
  },
  {
    said: /'guest-fsfreeze-freeze(?:-list)?': .* has been disabled/,
    code: "E_NO_AGENT",
    message: ({ domain }) =>
      `the guest agent of ${domain} is told not to freeze file systems. Allow it in the guest (block-rpcs in ` +
      "qemu-ga.conf), or leave --freeze out",
  },
  {
    said: /object-add'.*(?:credentials|certificate)|Unable to (?:access credentials|import server certificate)/i,
    code: "E_NO_CERTIFICATES",
    message: ({ domain }) =>
      `the hypervisor can't serve the disks of ${domain} by TLS: ca-cert.pem, server-cert.pem and server-key.pem ` +
      "have to be in its /etc/pki/libvirt-backup or /etc/pki/qemu (`backup_tls_x509_cert_dir` in qemu.conf), be valid, " +
      "and QEMU's user has to be able to read them",
  },
  {
    said: BLOCK_JOB,
    code: "E_DOMAIN_BUSY",
    message: ({ domain, stderr }) => blockJobMessage(domain, BLOCK_JOB.exec(stderr)?.[1] ?? "DISK"),
  },
  {
    said: /cannot acquire state change lock/,
    code: "E_DOMAIN_BUSY",
    message: ({ domain }) =>
      `another operation holds the domain ${domain}. See \`virsh domjobinfo ${domainWord(domain)}\`, and try again when it is over`,
  },
];

/** The typed error for virsh's message; undefined if it is nothing that a caller could correct. */
function knownFailure(failure: VirshFailure): BackupError | undefined {
  const known = KNOWN_FAILURES.find(({ said }) => said.test(failure.stderr));
  if (known === undefined) return undefined;
  const said = withoutPrefix(failure.stderr);
  return new PreconditionError(known.code, `${known.message(failure)} (libvirt: ${said})`, {
    details: { domain: failure.domain, connect: failure.connect, libvirt: said },
  });
}

/** virsh's message in one line, without the `error: ` before each part. */
function withoutPrefix(stderr: string): string {
  return stderr
    .replaceAll(/^error: /gm, "")
    .trim()
    .replaceAll(/\s*\n\s*/g, ": ");
}

/** The error for a virsh command that exited with another code than 0, or not at all. */
export function failure(
  command: string,
  domain: string,
  connect: string | undefined,
  result: {
    readonly stderr: string;
    readonly timedOut: boolean;
    readonly code?: string | undefined;
    readonly cause?: unknown;
  },
): BackupError {
  const { stderr, timedOut, cause } = result;
  if (result.code === "ENOENT") {
    return new PreconditionError(
      "E_NO_VIRSH",
      "virsh isn't installed, and nbdpull needs it to reach libvirt. Install it (Debian: apt install libvirt-clients)",
      { cause },
    );
  }
  const details = { command, domain, connect };
  if (timedOut) {
    return new BackupError(
      "E_VIRSH_TIMEOUT",
      `libvirt gave no answer to \`virsh ${command} ${domain}\` in time: its QEMU may hang, or the connection to it may be down`,
      { cause, details },
    );
  }
  const reason = withoutPrefix(stderr) || "no reason given";
  return (
    knownFailure({ stderr, domain, connect }) ??
    new BackupError("E_VIRSH", `virsh ${command} ${domain} failed: ${reason}`, { cause, details })
  );
}

/** Whether libvirt said that there is no job, or no domain: one defined only while it ran is gone too. */
export function isJobGone(error: unknown): boolean {
  return ["E_NO_JOB", "E_DOMAIN_OFF", "E_NO_SUCH_DOMAIN"].some((code) => hasCode(error, code));
}
