import type { DomainPoints } from "../src/backup/report/domain-points.js";

/**
 * What a domain is called where several could be meant: its name, and its folder or UUID where that differs.
 */
export function titleOf({ name, folder, uuid, isMixed }: Omit<DomainPoints, "points">): string {
  // No folder can be called as some domains are.
  const called = folder === name || folder.startsWith(`${name}@`) ? folder : `${folder} (${name})`;
  return isMixed ? `${called}, ${uuid === null ? "no UUID" : `UUID ${uuid}`}` : called;
}
