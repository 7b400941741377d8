import type { Target } from "./result.js";

/** Limit on the memory of every pull, which depends only on the data in flight and the number of extents. */
const MEMORY_MIB = 128;

export function boundedMemory(...contenders: readonly string[]): Target[] {
  return contenders.map((contender) => ({ contender, metric: "rss", atMost: MEMORY_MIB }));
}
