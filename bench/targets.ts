import type { Target } from "./result.js";

/** Of every pull, which depends only on the data in flight and the number of extents. */
const PULL_MIB = 128;
/** Of every backup and restore of a domain of libvirt. */
export const LIBVIRT_MIB = 90;

export function boundedMemory(...contenders: readonly string[]): Target[] {
  return contenders.map((contender) => memoryWithin(PULL_MIB, contender));
}

/** @param atMost MiB, of the largest process in any run */
export function memoryWithin(atMost: number, contender: string): Target {
  return { contender, metric: "rss", atMost };
}
