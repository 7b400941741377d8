import type { Target } from "./result.js";

/** What a pull may take at most, wherever: memory is bounded by what is in flight and by the number of extents. */
const MEMORY_MIB = 128;

export function boundedMemory(...contenders: readonly string[]): Target[] {
  return contenders.map((contender) => ({ contender, metric: "rss", atMost: MEMORY_MIB }));
}
