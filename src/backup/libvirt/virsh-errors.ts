import { BackupError, hasCode, PreconditionError } from "../base/errors.js";
import { domainWord } from "../base/shell-word.js";

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
    said: /QEMU guest agent is not (?:configured|connected)|Guest agent is not responding/,
    code: "E_NO_AGENT",
    message: ({ domain }) =>
      `the guest agent of ${domain} doesn't answer, and only it can freeze file systems. Install and start ` +
      "qemu-guest-agent in the guest, with its channel in the domain's definition, or leave --freeze out",
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
