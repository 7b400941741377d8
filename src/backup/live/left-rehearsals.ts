import { z } from "zod";
import { hasCode } from "../base/errors.js";
import { parseJson } from "../base/json.js";
import { HeldFolder } from "../host/held-folder.js";
import { isAlive, processIdentity, thisProcess } from "../host/process-identity.js";
import { DomainRun } from "../libvirt/domain-run.js";
import type { Libvirt } from "../libvirt/libvirt.js";

/** The names of folders and domains of rehearsals. */
const NAME = /^nbdpull-rehearsal-[0-9a-f]{12}$/;
/** In the folder of a rehearsal: whose it is. */
const OWNER = "owner.json";
const MOST_BYTES = 4096;
/** A folder that is younger may be one that is being made. */
const NEW_MS = 60_000;

const owner = z.object({ process: processIdentity, uuid: z.uuid().optional() });

/** @param uuid of the domain, once it is known */
export async function noteOwner(folder: HeldFolder, uuid?: string): Promise<void> {
  await folder.replace(OWNER, JSON.stringify({ process: await thisProcess(), uuid }));
}

/**
 * Removes the domains and folders of rehearsals in `place` that were killed.
 * @param place the folder of their folders
 * @throws as `Libvirt` does; the file system's error
 */
export async function clearLeftRehearsals(libvirt: Libvirt, place: string): Promise<void> {
  await using above = await HeldFolder.open(place);
  for (const name of await above.names()) {
    if (NAME.test(name)) await clearLeft(libvirt, above, name);
  }
}

async function clearLeft(libvirt: Libvirt, above: HeldFolder, name: string): Promise<void> {
  const folder = await above.folder(name).catch(() => undefined);
  if (!folder) return;
  try {
    // In a folder that everybody may write to, others can make one that is called so.
    if ((await folder.status()).uid !== process.getuid?.()) return;
    const names = await folder.names();
    const text = names.includes(OWNER) ? (await folder.read(OWNER, MOST_BYTES)).toString("utf8") : "";
    const { data } = owner.safeParse(parseJson(text));
    if (!data) {
      // One that has just been made, or whose maker was killed in that moment.
      const age = Date.now() - (await folder.status()).mtimeMs;
      if (names.length === 0 && age > NEW_MS) await above.removeEmpty(name);
      return;
    }
    if (await isAlive(data.process)) return;
    if (data.uuid !== undefined) await removeDomain(new DomainRun(libvirt, { name, uuid: data.uuid }));
  } finally {
    await folder.close();
  }
  await above.remove(name);
}

/** Ends a domain and makes libvirt forget it; it may be off, or unknown. */
export async function removeDomain(run: DomainRun): Promise<void> {
  try {
    if ((await run.runState()) !== "off") await run.destroy();
  } catch (error) {
    if (hasCode(error, "E_NO_SUCH_DOMAIN")) return;
    if (!hasCode(error, "E_DOMAIN_OFF") && (await run.runState()) !== "off") throw error;
  }
  await run.forget();
}
