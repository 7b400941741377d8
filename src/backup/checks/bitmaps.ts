/** Checks libvirt's checkpoints, and what the next backup would do with them. */
import prettyBytes from "pretty-bytes";
import { domainWord, shellWord } from "../base/shell-word.js";
import { changedSince, refuseNoBase } from "../guest/plan-guest.js";
import { checkpointPrefix, readCheckpoints } from "../libvirt/checkpoints.js";
import { ownerOf } from "./bitmaps-in-images.js";
import { type Found, pass, type Subject, warn } from "./check.js";

/** Lists the checkpoints. Whether their bitmaps are usable is known only for a running domain. */
export async function lookAtCheckpoints({
  libvirt,
  domain,
  repository,
  repositoryPath,
}: Subject): Promise<readonly Found[]> {
  if (!domain) return [];
  const prefix = repository && checkpointPrefix(repository.id);
  const found: Found[] = [];
  for (const { name, disks } of await readCheckpoints(libvirt, domain)) {
    const isOurs = prefix !== undefined && name.startsWith(prefix);
    const whose = ownerOf(name, prefix);
    const marked = disks.flatMap((disk) => (disk.bitmap === undefined ? [] : [disk.name]));
    if (domain.id === undefined) {
      found.push(pass(`${whose}, of ${marked.join(", ")}`, name));
      continue;
    }
    const changed = await changedSince(libvirt, domain, name);
    const broken = marked.filter((disk) => !changed.has(disk));
    if (broken.length > 0) {
      const cause = `${whose}; its bitmaps of ${broken.join(", ")} are lost or broken (QEMU writes them only when it ends: was it killed?), and no increment can start from them`;
      const mend = isOurs
        ? `nbdpull backup ${domain.name} --to ${repositoryPath} (takes in full what has no base, and deletes it)`
        : `virsh checkpoint-delete ${domainWord(domain.name)} ${shellWord(name)}`;
      found.push(warn(cause, mend, name));
      continue;
    }
    const sizes = marked.map((disk) => `${disk} ${bytes(changed.get(disk) ?? 0)}`);
    found.push(pass(`${whose}; changed since: ${sizes.join(", ")}`, name));
  }
  return found.length === 0 ? [pass("there are none")] : found;
}

/** Reports how the next backup would take each disk, and why. */
export async function lookAtForecast(subject: Subject): Promise<readonly Found[]> {
  const { forecast, domain, level } = subject;
  if (!forecast || !domain) return [];
  if (level !== undefined) refuseNoBase(domain.name, forecast.plans, level);
  return forecast.plans.map(({ name, base, reason }): Found => {
    const about = bytes(forecast.sizes.get(name) ?? 0);
    if (base) return pass(`an increment on ${base.parent.id}, about ${about}`, name);
    return pass(`full, up to ${about}${reason === undefined ? "" : `: ${reason}`}`, name);
  });
}

function bytes(count: number): string {
  return prettyBytes(count, { binary: true });
}
