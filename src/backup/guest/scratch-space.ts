/** When scratch files come to be short of room: numbers in, a verdict out. */

/** How a job's scratch files stood at one moment. */
export interface ScratchSample {
  /** In milliseconds, by any clock that is never set back. */
  readonly time: number;
  /** Bytes that they take. */
  readonly used: number;
  /** Bytes that they can still take. */
  readonly left: number;
}

export interface ScratchVerdict {
  /** `scarce`: it is time to say so. `short`: the guest may fill what is left before anybody could do something. */
  readonly kind: "enough" | "scarce" | "short";
  /** Bytes a second by which `left` falls, when it fell fastest of late. */
  readonly fall: number;
  /** Bytes that have to be left. */
  readonly needed: number;
}

/** As much as a guest may write at once without warning, as a part of all room that was there. */
const RESERVED_PART = 1 / 10;
const MOST_RESERVED = 4 * 1024 ** 3;
const SCARCE_PART = 1 / 4;
/** How long it may take from the sample that shows it until the job is gone, on a host that is busy. */
const REACTION_S = 3;
/** Samples that are older say little about what comes next. */
const RECENT_MS = 10_000;
/** A fall within a shorter time counts as one of this time: one large write is no rate. */
const SHORTEST_SPAN_MS = 1000;

/**
 * Judges by the newest sample, and by how fast the others led to it:
 *
 *     |-- used --|------------------------- left --------------------------|     at the beginning
 *     |------------------- used -------------------|--------- left --------|     scarce below a quarter of both
 *     |----------------------------- used --------------------------|- left -|   short below what is needed:
 *                                                                    the reserve, or 3 s of the fastest fall
 *
 * What counts is the room, whoever takes it: other programs' files make it scarce as well.
 *
 * @param room bytes that were used or left at the beginning
 * @param recent oldest first, as `recentSamples` gives them
 * @param reserve bytes; default a tenth of the room, at most 4 GiB. With 0 it may be scarce, but never short
 */
export function judgeScratch(
  room: number,
  recent: readonly ScratchSample[],
  reserve = Math.min(room * RESERVED_PART, MOST_RESERVED),
): ScratchVerdict {
  const fall = fastestFall(recent);
  const needed = reserve === 0 ? 0 : Math.max(reserve, fall * REACTION_S);
  const left = recent.at(-1)?.left ?? room;
  if (left < needed) return { kind: "short", fall, needed };
  return { kind: left < room * SCARCE_PART ? "scarce" : "enough", fall, needed };
}

/** The samples that still count when `newest` has come, and that one. */
export function recentSamples(samples: readonly ScratchSample[], newest: ScratchSample): ScratchSample[] {
  return [...samples.filter(({ time }) => newest.time - time <= RECENT_MS), newest];
}

/** Bytes a second between any two samples. */
function fastestFall(samples: readonly ScratchSample[]): number {
  let fastest = 0;
  for (const [index, later] of samples.entries()) {
    for (const earlier of samples.slice(0, index)) {
      const spanMs = Math.max(later.time - earlier.time, SHORTEST_SPAN_MS);
      fastest = Math.max(fastest, ((earlier.left - later.left) * 1000) / spanMs);
    }
  }
  return fastest;
}
