import type { KeptVersion } from "./stored-writing.js";

/**
 * What a bucket with versions does with what was removed or replaced there.
 * @param those what it was, in the plural
 */
export function keptVersionsText(domain: string, those: string, versions: readonly KeptVersion[]): string {
  const what = `the bucket keeps versions: ${versions.length} ${those} of ${domain} stay there as old ones, and take room`;
  const dates = versions.flatMap(({ lockedUntil }) => lockedUntil?.getTime() ?? []);
  if (versions.some(({ isHeld }) => isHeld)) return `${what} as long as a legal hold is on them`;
  if (dates.length === 0) return `${what} until a lifecycle rule of the bucket removes them`;
  return `${what}: by object lock, they can't be deleted before ${new Date(Math.max(...dates)).toISOString()}`;
}
