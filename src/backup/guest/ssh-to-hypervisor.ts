import { PreconditionError } from "../base/errors.js";
import { Ssh } from "../host/ssh.js";
import type { Hypervisor } from "../libvirt/hypervisor.js";

/**
 * Socket and scratch files are made by QEMU, in a folder that is made for it: on its host, which takes a shell there.
 * Undefined where that is this host.
 * @throws {PreconditionError} `E_REMOTE`: there is none
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
  // What it does is soon done, or is clearing up: under no signal.
  return new Ssh(hypervisor.target);
}
