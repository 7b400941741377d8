import { PreconditionError } from "../base/errors.js";
import { Ssh } from "../host/ssh.js";
import type { Hypervisor } from "../libvirt/hypervisor.js";

/**
 * Opens ssh to QEMU's host, where the folder for QEMU's socket and scratch files has to be made. Undefined if
 * QEMU runs on this host.
 * @throws {PreconditionError} `E_REMOTE`: the connection to libvirt gives no shell on that host
 */
export async function sshTo(
  hypervisor: Hypervisor,
  signal: AbortSignal | undefined,
): Promise<Ssh | undefined> {
  if (hypervisor.kind === "local") return undefined;
  if (hypervisor.kind === "network") {
    const { host } = hypervisor;
    const message = `this connection leads to the libvirt of ${host} and to nothing else there, but a job needs a folder for its scratch files: connect by qemu+ssh://${host}/system, run nbdpull on ${host}, or begin the job with virsh backup-begin and use nbdpull attach`;
    throw new PreconditionError("E_REMOTE", message, { details: { host } });
  }
  await new Ssh(hypervisor.target, signal).run(":", {});
  // Without the signal: its commands are short, or they clean up and must not be interrupted.
  return new Ssh(hypervisor.target);
}
