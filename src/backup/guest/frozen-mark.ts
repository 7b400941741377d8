/**
 * The mark of a guest that may be frozen: which run of the domain it is.
 *
 *     7/1b0c9a4e-5d7f-4f0e-9e42-2f6b1c3d5e7f/184467
 *     libvirt's number of the run / boot of the host / start of QEMU, in ticks after the boot
 *
 * libvirt counts runs from 1 again after a boot of the host, and when its daemon starts while no domain runs.
 * So the number alone would take a later run, frozen by somebody else, for this one. What isn't known is
 * empty. A guest that was reset is in the same run; nothing that libvirt tells shows a reset afterwards.
 */
import { readFile } from "node:fs/promises";
import { BOOT_ID, startIn } from "../host/process-identity.js";
import type { DomainDefinition } from "../libvirt/documents/domain-xml.js";

/** A domain, as marks need it. */
export type MarkedDomain = Pick<DomainDefinition, "id" | "name" | "uuid">;

/** Where libvirt's daemon of the system keeps the process numbers of its QEMUs. */
export const PID_FILES = "/run/libvirt/qemu";

/** @param there the boot of its host and the start of QEMU, as in a mark */
export function markOf({ id }: Pick<DomainDefinition, "id">, there: string): string {
  return `${id}/${there}`;
}

/**
 * Whether a mark can be of the run that another one names. Earlier versions wrote the number of the run only,
 * or nothing.
 */
export function canBeSameRun(mark: string, other: string): boolean {
  if (mark === "") return true;
  const [run, ...facts] = mark.split("/");
  const [otherRun, ...others] = other.split("/");
  return run === otherRun && facts.every((fact, i) => !fact || !others[i] || fact === others[i]);
}

/** The boot of this host, and the start of the domain's QEMU on it, as in a mark. */
export async function runHere({ name, uuid }: MarkedDomain): Promise<string> {
  const read = (path: string): Promise<string> => readFile(path, "utf8").catch(() => "");
  const boot = (await read(BOOT_ID)).trim();
  const pid = Number.parseInt(await read(`${PID_FILES}/${name}.pid`), 10);
  // Another libvirt may have a domain of that name.
  const isIts = !Number.isNaN(pid) && (await read(`/proc/${pid}/cmdline`)).includes(uuid);
  return `${boot}/${isIts ? startIn(await read(`/proc/${pid}/stat`)) : ""}`;
}
