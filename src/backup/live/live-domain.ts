/**
 * The domain of a live restore: whether it can run here, told from those of others, and what is said if it
 * does not start.
 */
import { join } from "node:path";
import { hasCode, messageOf, PreconditionError } from "../base/errors.js";
import type { HeldFolder } from "../host/held-folder.js";
import { parseTree } from "../libvirt/documents/xml-tree.js";
import { type DomainRun, sourcesOf } from "../libvirt/domain-run.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import { noteOf } from "./beside-point.js";
import { stopOnErrors } from "./error-policies.js";
import { withFiles } from "./live-definition.js";
import type { LiveState } from "./live-state.js";

/** The first ones known to follow an image's header to an NBD server, and to keep block jobs by nodes. */
const OLDEST = { libvirt: [6, 0], hypervisor: [4, 2] } as const;

/** @throws {PreconditionError} `E_LIVE_UNSUPPORTED` */
export async function refuseUnfitLive(libvirt: Libvirt): Promise<void> {
  const refusal = (why: string): PreconditionError =>
    new PreconditionError(
      "E_LIVE_UNSUPPORTED",
      `a guest can't run from a restore point there: ${why}. Nothing was changed. Restore without --live`,
    );
  const host = await libvirt.remoteHost();
  if (host !== undefined) {
    throw refusal(
      `libvirt is on ${host}, and QEMU reads the point through a socket of this host. Run nbdpull on ${host}`,
    );
  }
  const versions = await libvirt.versions();
  for (const part of ["libvirt", "hypervisor"] as const) {
    const [major = 0, minor = 0] = versions[part].split(".").map(Number);
    const [least, leastMinor] = OLDEST[part];
    if (major > least || (major === least && minor >= leastMinor)) continue;
    const what = part === "libvirt" ? "libvirt" : "QEMU";
    throw refusal(`${what} is ${versions[part]}, and ${least}.${leastMinor} is the first that can`);
  }
}

/** While it is filled. */
export function definitionOf(
  xml: string,
  { disks, salvage, place }: Pick<LiveState, "disks" | "salvage" | "place">,
): string {
  const names = disks.map(({ name }) => name);
  const onImages = new Map(disks.map((disk) => [disk.name, join(place, imageOf(disk))]));
  return stopOnErrors(withFiles(xml, onImages), names, salvage ? "report" : "stop").xml;
}

/** The file that the guest is on, in the folder of the live restore. */
export function imageOf({ file, whole, isSwitched }: LiveState["disks"][number]): string {
  return whole && isSwitched === true ? whole.file : file;
}

/**
 * Makes sure that the domain of that UUID is the one that a live restore defined: each of its disks is on the
 * image in the folder, or on what somebody has made on top of it since.
 * @throws {PreconditionError} `E_LIVE_STATE`
 */
export async function proveOurs(
  run: DomainRun,
  folder: HeldFolder,
  state: Pick<LiveState, "domain" | "disks" | "point" | "note">,
): Promise<void> {
  const { domain, disks } = state;
  const whole = parseTree(await run.wholeDefinition(), "domain");
  const running = parseTree(await run.definition(), "domain");
  for (const disk of disks) {
    const { name } = disk;
    const image = join(folder.realPath, imageOf(disk));
    // It was killed just when the guest was switched over. Before a copy has begun nobody can have done that.
    const isCopied = disk.hasBegun === true || disk.isSwitching === true;
    const next = join(folder.realPath, (isCopied && disk.whole?.file) || disk.file);
    const sources = [...sourcesOf(whole, name), ...sourcesOf(running, name)];
    if (sources.some((source) => [image, next].includes(source.attributeText("file") ?? ""))) continue;
    const other = sources[0]?.attributeText("file") ?? "no file";
    const message = `the domain ${domain.name} (${domain.uuid}) is not the one that the live restore in ${folder.path} made: its disk ${name} is on ${other}, and not on ${image}. Nothing was changed. If that is as it should be, remove what is left in ${folder.path}, and, if it is there, ${noteOf(state)}; otherwise undefine that domain, and the same command goes on`;
    throw new PreconditionError("E_LIVE_STATE", message, { details: { domain: domain.name, disk: name } });
  }
}

/** Has libvirt forget a domain that does not run, with all that it made for it. @returns whether it has */
export async function isForgotten(run: DomainRun): Promise<boolean> {
  try {
    if ((await run.runState()) !== "off") return false;
    await run.forget();
    return true;
  } catch (error) {
    return hasCode(error, "E_NO_SUCH_DOMAIN");
  }
}

/**
 * Whether a domain of that name and UUID may be the one that was to be started here, after that has failed.
 * One of somebody else's must not be forgotten.
 * @param asked whether libvirt was asked to define it, and whether it said that it had
 */
export function mayBeOurs(
  error: unknown,
  { mayBeDefined, isDefined }: { readonly mayBeDefined: boolean; readonly isDefined: boolean },
): boolean {
  const isRefusal = hasCode(error, "E_DOMAIN_EXISTS") || hasCode(error, "E_LIBVIRT_REFUSED");
  return mayBeDefined && (isDefined || !isRefusal);
}

/**
 * What was prepared took a while: a domain of that name or UUID would be replaced.
 * @param left of a live restore that had begun before, and stays: its state and its folder
 */
export async function refuseTaken(
  libvirt: Libvirt,
  { name, uuid }: LiveState["domain"],
  left?: { readonly state: Pick<LiveState, "domain" | "point" | "note">; readonly folder: string },
): Promise<void> {
  for (const known of [uuid, name]) {
    if (!(await libvirt.hasDomain(known))) continue;
    const then = left
      ? `the live restore in ${left.folder} can't go on beside it. To give that up, remove what is left there, and, if it is there, ${noteOf(left.state)}`
      : "nothing was restored";
    const message = `a domain ${name} (${known}) was made meanwhile and was not touched: ${then}`;
    throw new PreconditionError("E_DOMAIN_EXISTS", message, { details: { domain: name, uuid } });
  }
}

export function notStarted(name: string, cause: unknown): PreconditionError {
  const message = `${name} could not be started on the restore point, and nothing of it was left: ${messageOf(cause)}. If QEMU was not allowed to connect, AppArmor or SELinux keeps it from the socket beside the disks`;
  return new PreconditionError("E_LIVE_NOT_STARTED", message, { cause, details: { domain: name } });
}

export function unknown(
  { domain }: Pick<LiveState, "domain">,
  folder: string,
  cause: unknown,
): PreconditionError {
  const message = `nobody knows whether ${domain.name} was started, or libvirt does not forget it (${messageOf(cause)}), so everything was left in ${folder}: the same command goes on`;
  return new PreconditionError("E_LIVE_NOT_STARTED", message, { cause, details: { domain: domain.name } });
}
