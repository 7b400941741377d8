/** Copies into whole images that a killed live restore has left running in QEMU. */
import { join } from "node:path";
import type { HeldFolder } from "../host/held-folder.js";
import type { DomainRun } from "../libvirt/domain-run.js";
import { ImagesInUse } from "./images-in-use.js";
import type { LiveState } from "./live-state.js";
import { isOurs } from "./made-files.js";

/**
 * Ends those that don't go into the very file that was made: QEMU still writes to the old one, though another
 * has its name by now.
 * @returns the disks whose guest is on the whole image, or will be at its next start: none may be made under
 *   that name
 */
export async function endLeftCopies(
  run: DomainRun,
  folder: HeldFolder,
  state: Pick<LiveState, "disks" | "made">,
): Promise<ReadonlySet<string>> {
  const standing = new Set<string>();
  for (const { name, whole, isSwitched, hasBegun, isLeftToQemu } of state.disks) {
    if (!whole || isSwitched === true) continue;
    const path = join(folder.realPath, whole.file);
    const isCopying = async (): Promise<boolean> => (await run.merging(name))?.image === path;
    const used = await ImagesInUse.of(run);
    const isStanding = used.isOn(name, path) || used.willBeOn(name, path);
    if (isStanding) standing.add(name);
    const isWanted = hasBegun === true && isLeftToQemu !== true && !isStanding;
    const isKept = isWanted && (await isOurs(folder, state, whole.file));
    if (!isKept && (await isCopying())) {
      await run.endCopy(name).catch(async (error: unknown) => {
        // It may have ended just then.
        if (await isCopying()) throw error;
      });
    }
  }
  return standing;
}
