import type { Mend } from "../src/backup/repair/repair.js";
import type { Finding } from "../src/backup/verify/verify.js";
import { isDamage } from "./noted-damage.js";

/** Points of which damage is left, if what was found is mended as told. */
export function leftToMend(
  reports: readonly { readonly id: string; readonly findings: readonly Finding[] }[],
  mends: readonly Mend[],
): string[] {
  return reports
    .filter(({ id, findings }) => {
      const own = mends.filter(({ point }) => point === id);
      return findings.some((finding) => isDamage(finding) && !isMended(finding, own));
    })
    .map(({ id }) => id);
}

/** A finding is of neighbouring clusters, each of which is mended by itself. */
function isMended({ disk, guestOffset, length = 0 }: Finding, mends: readonly Mend[]): boolean {
  const ofDisk = mends.filter((mend) => mend.disk === disk);
  if (guestOffset === undefined) return ofDisk.some(({ what }) => what !== "cluster");
  const mendedBytes = ofDisk
    .filter(({ guestOffset: at = -1 }) => at >= guestOffset && at < guestOffset + length)
    .reduce((sum, mend) => sum + (mend.length ?? 0), 0);
  return mendedBytes >= length;
}
