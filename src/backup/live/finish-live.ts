/** The end of a live restore, of each disk and of the whole. */
import { join } from "node:path";
import type { HeldFolder } from "../host/held-folder.js";
import { DomainRun } from "../libvirt/domain-run.js";
import { type Libvirt, PATIENCE_MS } from "../libvirt/libvirt.js";
import type { Repository } from "../repository/repository.js";
import { forgetBeside } from "./beside-point.js";
import { withPolicies } from "./error-policies.js";
import { fileOf, withFiles } from "./live-definition.js";
import { imageOf } from "./live-domain.js";
import { type LiveState, removeLiveState } from "./live-state.js";
import { flushFilled, removeOurs } from "./made-files.js";

export interface Finishing {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  readonly libvirt: Libvirt;
  readonly onEvent: (event: { readonly type: "warning"; readonly message: string }) => void;
}

type Finished = Pick<LiveState, "domain" | "disks" | "made" | "point" | "adapted" | "xml">;

/**
 * A disk needs nobody any more. If its guest was switched over to the whole image, the one of before goes:
 * nothing may start on it again.
 * @param write replaces the state file; durable when it settles
 */
export async function settleDisk(
  { libvirt }: Finishing,
  folder: HeldFolder,
  state: Finished,
  { name, write }: { readonly name: string; readonly write: () => Promise<void> },
): Promise<void> {
  const disk = state.disks.find((each) => each.name === name);
  if (!disk?.whole || disk.isSwitched === true) return;
  const [own, whole] = [disk.file, disk.whole.file].map((file) => join(folder.realPath, file)) as [
    string,
    string,
  ];
  const run = new DomainRun(libvirt, state.domain);
  if (fileOf(await run.definition(), name) !== whole) return;
  const next = await run.wholeDefinition();
  // libvirt has changed that too, unless it was killed just then.
  if (fileOf(next, name) === own) {
    await libvirt.define(state.domain.name, withFiles(next, new Map([[name, whole]])));
  }
  disk.isSwitched = true;
  await write();
  await removeOurs(folder, state, disk.file);
}

/** All images are filled: the domain gets its definition back, and what only the filling needed goes. */
export async function finishLive(options: Finishing, folder: HeldFolder, state: Finished): Promise<void> {
  const { name, uuid } = state.domain;
  const steady = options.libvirt.withSignal(undefined).withPatience(PATIENCE_MS);
  const moved = new Set<string>();
  const files = new Map(state.disks.map((disk) => [disk.name, join(folder.realPath, imageOf(disk))]));
  if (await steady.hasDomain(uuid)) {
    const whole = await new DomainRun(steady, state.domain).wholeDefinition();
    for (const [disk, image] of files) {
      if (fileOf(whole, disk) === image) continue;
      moved.add(disk);
      options.onEvent({ type: "warning", message: `${disk} of ${name} is not on ${image} any more` });
    }
    // What is on another image is somebody else's.
    const ours = state.disks.filter((disk) => !moved.has(disk.name));
    const before = new Map(ours.map((disk) => [disk.name, disk.policies]));
    if (ours.length > 0) await steady.define(name, withPolicies(whole, before));
  }
  for (const disk of state.disks) if (!moved.has(disk.name)) await flushFilled(folder, imageOf(disk));
  await keepOnlyUsed(folder, state, files);
  await forgetBeside(options, state);
  await removeLiveState(folder);
}

/** QEMU has filled a disk's own image after all: the whole one is nobody's, and the definition names it. */
async function keepOnlyUsed(
  folder: HeldFolder,
  state: Finished,
  files: ReadonlyMap<string, string>,
): Promise<void> {
  const unused = state.disks.filter(({ whole, isSwitched }) => whole && isSwitched !== true);
  for (const { whole } of unused) if (whole) await removeOurs(folder, state, whole.file);
  for (const { file, isSwitched } of state.disks)
    if (isSwitched === true) await removeOurs(folder, state, file);
  if (unused.length === 0) return;
  const xml = (await folder.read(state.xml, MOST_BYTES)).toString("utf8");
  await folder.replace(state.xml, withFiles(xml, files));
}

/** Longer than any definition that libvirt takes. */
const MOST_BYTES = 4 * 1024 * 1024;
