import type { Target } from "./result.js";

/** Limits for every pull: memory is bounded by the data in flight and by the number of extents. */
const MEMORY_MIB = 128;

export function boundedMemory(...contenders: readonly string[]): Target[] {
  return contenders.map((contender) => ({ contender, metric: "rss", atMost: MEMORY_MIB }));
}
