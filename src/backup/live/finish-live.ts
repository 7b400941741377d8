/** The end of a live restore, of each disk and of the whole. */
import { join } from "node:path";
import { PreconditionError } from "../base/errors.js";
import type { HeldFolder } from "../host/held-folder.js";
import { DomainRun } from "../libvirt/domain-run.js";
import { type Libvirt, PATIENCE_MS } from "../libvirt/libvirt.js";
import type { Repository } from "../repository/repository.js";
import { forgetBeside } from "./beside-point.js";
import { withPolicies } from "./error-policies.js";
import { ImagesInUse } from "./images-in-use.js";
import { fileOf, withFiles } from "./live-definition.js";
import { imageOf } from "./live-domain.js";
import { type LiveState, removeLiveState } from "./live-state.js";
import { flushFilled, isOurs } from "./made-files.js";

interface Finishing {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  readonly libvirt: Libvirt;
  readonly onEvent: (event: { readonly type: "warning"; readonly message: string }) => void;
}

type Finished = Pick<LiveState, "domain" | "note" | "disks" | "made" | "point" | "adapted" | "xml">;

/**
 * A disk needs nobody any more. If its guest was switched over to the whole image, or is on something that is
 * based on it, the one of before goes: nothing may start on it again. It stays if something uses it, or if it
 * was somebody else who switched.
 * @param write replaces the state file; durable when it settles
 * @throws {PreconditionError} `E_LIVE_STATE`: what the guest is on is not the image that was made
 */
export async function settleDisk(
  { libvirt }: Finishing,
  folder: HeldFolder,
  state: Finished,
  { name, write }: { readonly name: string; readonly write: () => Promise<void> },
): Promise<void> {
  const disk = state.disks.find((each) => each.name === name);
  if (!disk?.whole || disk.isSwitched === true) return;
  const [own, whole] = [join(folder.realPath, disk.file), join(folder.realPath, disk.whole.file)];
  const run = new DomainRun(libvirt, state.domain);
  if (!(await ImagesInUse.of(run)).isOn(name, whole)) return;
  const domain = state.domain.name;
  const refusal = (why: string): PreconditionError => {
    const message = `${name} of ${domain} is on ${whole}, but ${why}. Nothing was removed: ${own} is what it was on before`;
    return new PreconditionError("E_LIVE_STATE", message, { details: { domain, disk: name } });
  };
  if (disk.hasBegun !== true && disk.isSwitching !== true) {
    throw refusal(
      "what the guest had written was not copied there before. Shut it down, and define it again",
    );
  }
  if (!(await isOurs(folder, state, disk.whole.file))) {
    throw refusal(
      "the file that it has open was moved, removed or replaced: do not shut the guest down before it is back there, or copied (virsh blockcopy)",
    );
  }
  await flushFilled(folder, disk.whole.file);
  const isOnTop = fileOf(await run.definition(), name) === whole;
  const next = await run.wholeDefinition();
  // libvirt has changed that too, unless it was killed just then.
  if (isOnTop && fileOf(next, name) === own) {
    await libvirt.define(domain, withFiles(next, new Map([[name, whole]])));
  }
  disk.isSwitched = true;
  await write();
  // What is left is named at the end.
  const mayGo = disk.isSwitching === true && (await isOurs(folder, state, disk.file));
  if (mayGo && !(await (await ImagesInUse.of(run)).has(folder, disk.file))) await folder.unlink(disk.file);
}

/** All images are filled: the domain gets its definition back, and what only the filling needed goes. */
export async function finishLive(options: Finishing, folder: HeldFolder, state: Finished): Promise<void> {
  const { name, uuid } = state.domain;
  const steady = options.libvirt.withSignal(undefined).withPatience(PATIENCE_MS);
  const moved = new Set<string>();
  let used: ImagesInUse | undefined;
  const files = new Map(state.disks.map((disk) => [disk.name, join(folder.realPath, imageOf(disk))]));
  if (await steady.hasDomain(uuid)) {
    const run = new DomainRun(steady, state.domain);
    const whole = await run.wholeDefinition();
    for (const [disk, image] of files) {
      if (fileOf(whole, disk) === image) continue;
      moved.add(disk);
      options.onEvent({ type: "warning", message: `${disk} of ${name} is not on ${image} any more` });
    }
    // What is on another image is somebody else's.
    const ours = state.disks.filter((disk) => !moved.has(disk.name));
    const before = new Map(ours.map((disk) => [disk.name, disk.policies]));
    if (ours.length > 0) await steady.define(name, withPolicies(whole, before));
    used = await ImagesInUse.of(run);
  }
  for (const disk of state.disks) if (!moved.has(disk.name)) await flushFilled(folder, imageOf(disk));
  const kept = await keepOnlyUsed(folder, state, { files, used, moved });
  for (const path of kept) {
    const message = `${path} is left, because ${name} may need it: look at what its disks are on, and remove it when you are sure`;
    options.onEvent({ type: "warning", message });
  }
  await forgetBeside(options, state);
  await removeLiveState(folder);
}

/**
 * What no guest is on goes: of a disk that QEMU has filled after all the whole image, and the definition
 * names the other one.
 * @returns the paths of files that stay, because they are used or may be
 */
async function keepOnlyUsed(
  folder: HeldFolder,
  state: Finished,
  {
    files,
    used,
    moved,
  }: {
    readonly files: ReadonlyMap<string, string>;
    readonly used: ImagesInUse | undefined;
    readonly moved: ReadonlySet<string>;
  },
): Promise<string[]> {
  const kept: string[] = [];
  for (const { name, file, whole, isSwitched = false, isSwitching = false } of state.disks) {
    if (!whole) continue;
    const old = isSwitched ? file : whole.file;
    if (!(await isOurs(folder, state, old))) continue;
    // Nobody says what a guest that is off would have below another image.
    const isHidden = used?.runs === false && moved.has(name);
    const isDoubtful = isSwitched !== isSwitching;
    if (isDoubtful || isHidden || (await used?.has(folder, old))) kept.push(join(folder.path, old));
    else await folder.unlink(old);
  }
  if (!state.disks.some(({ whole, isSwitched }) => whole && isSwitched !== true)) return kept;
  const xml = (await folder.read(state.xml, MOST_BYTES)).toString("utf8");
  await folder.replace(state.xml, withFiles(xml, files));
  return kept;
}

/** Longer than any definition that libvirt takes. */
const MOST_BYTES = 4 * 1024 * 1024;
