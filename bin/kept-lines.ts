import { bootFilesOf } from "../src/backup/repository/kept-files.js";
import type { Manifest } from "../src/backup/repository/manifest.js";
import { human } from "./output.js";

/** What a point contains besides disks and definition, and what it lacks. */
export function keptLines(point: Manifest): string[] {
  const kept = bootFilesOf(point).map(({ role, length }) => `${role} (${human(length)})`);
  const missing = (point.notKept ?? []).map(({ what, reason }) => `not kept: ${what} (${reason})`);
  return [...(kept.length > 0 ? [`kept too: ${kept.join(", ")}`] : []), ...missing];
}
