/** `verify --share N`: a share of the points each day, such that no day needs to know of another. */
import { createHash } from "node:crypto";

/**
 * The points whose turn it is. Each is chosen on one of N days in a row, whatever points come and go
 * meanwhile.
 * @param ids of points of the domain
 * @param shares N
 */
export function shareOfToday(domain: string, ids: readonly string[], shares: number, now: Date): string[] {
  const today = dayOf(now) % shares;
  return ids.filter((id) => {
    const digest = createHash("sha256").update(`${domain}/${id}`).digest();
    return digest.readUInt32BE(0) % shares === today;
  });
}

/** Days of the local calendar, counted. */
function dayOf(now: Date): number {
  return Date.UTC(now.getFullYear(), now.getMonth(), now.getDate()) / 86_400_000;
}
