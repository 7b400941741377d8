/** Guests that went off just when they were switched over to another image. */
import { join } from "node:path";
import { PreconditionError } from "../base/errors.js";
import type { HeldFolder } from "../host/held-folder.js";
import type { DomainRun } from "../libvirt/domain-run.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import { fileOf, withFiles } from "./live-definition.js";
import { type LiveState, writeLiveState } from "./live-state.js";
import { isOurs } from "./made-files.js";

/**
 * A power cut can come after a switch and before libvirt has saved which image the guest is on: started on
 * the old one, it would lack its last writes. Who runs the guest decides then, by leaving only one of the
 * files.
 * @throws {PreconditionError} `E_LIVE_STATE`: both files are there
 */
export async function decideSwitches(
  { libvirt, run }: { readonly libvirt: Libvirt; readonly run: DomainRun },
  folder: HeldFolder,
  state: LiveState,
): Promise<void> {
  const doubtful = state.disks.filter(({ isSwitching }) => isSwitching === true);
  if (doubtful.length === 0) return;
  const { name: domain, uuid } = state.domain;
  const isDefined = await libvirt.hasDomain(uuid);
  if (isDefined && (await run.runState()) !== "off") return;
  for (const disk of doubtful) {
    if (!disk.whole) continue;
    const [own, whole] = [join(folder.realPath, disk.file), join(folder.realPath, disk.whole.file)];
    // On anything but its own image, libvirt knows more.
    if (isDefined && fileOf(await run.wholeDefinition(), disk.name) !== own) continue;
    const [before, after] = [await folder.find(disk.file), await folder.find(disk.whole.file)];
    if (before && disk.isSwitched === true) continue;
    if (before && after) {
      const [one, other] = [before.mtime.toISOString(), after.mtime.toISOString()];
      const message = `${domain} went off just when its disk ${disk.name} was switched from ${own} (last written ${one}) to ${whole} (last written ${other}), and nobody knows whether it was: nothing was changed. As a rule the one that was written last has all of its writes, and ${whole} if it was at the same time. Move the other one to another folder, and the same command goes on with what is left`;
      throw new PreconditionError("E_LIVE_STATE", message, { details: { domain, disk: disk.name } });
    }
    if (before) [disk.isSwitching, disk.hasBegun] = [false, false];
    else if (await isOurs(folder, state, disk.whole.file)) disk.isSwitched = true;
    else continue;
    await writeLiveState(folder, { ...state, phase: "ready" });
    if (disk.isSwitched !== true || !isDefined) continue;
    const next = withFiles(await run.wholeDefinition(), new Map([[disk.name, whole]]));
    await libvirt.define(domain, next);
  }
}
