/** Decides from sizes alone whether scratch files are about to run out of room. */

/** The room of a job's scratch files at one moment. */
export interface ScratchSample {
  /** Milliseconds of a monotonic clock. */
  readonly time: number;
  /** Bytes that the files occupy. */
  readonly used: number;
  /** Bytes by which they can still grow. */
  readonly left: number;
}

export interface ScratchVerdict {
  /** `scarce`: the user should be warned. `short`: the guest may fill the rest before anybody can react. */
  readonly kind: "enough" | "scarce" | "short";
  /** The fastest recent fall of `left`, in bytes per second. */
  readonly fall: number;
  /** Bytes that must stay free. */
  readonly needed: number;
}

/** The part of the initial room that is reserved for a sudden burst of guest writes. */
const RESERVED_PART = 1 / 10;
const MOST_RESERVED = 4 * 1024 ** 3;
const SCARCE_PART = 1 / 4;
/** Seconds from the sample that shows the shortage to the end of the job, on a busy host. */
const REACTION_S = 3;
/** Older samples say little about what comes next. */
const RECENT_MS = 10_000;
/** A shorter span counts as this long, so that a single large write is not taken for a rate. */
const SHORTEST_SPAN_MS = 1000;

/**
 * Judges by the newest sample, and by the rate at which `left` fell before it:
 *
 *     |-- used --|------------------------- left --------------------------|   at the beginning
 *     |------------------- used -------------------|--------- left --------|   scarce below a quarter of both
 *     |----------------------------- used --------------------------|- left -| short below what is needed:
 *                                                                    the reserve, or 3 s of the fastest fall
 *
 * Room that other programs' files take counts as well.
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

/**
 * Bytes by which `left` may fall until it reaches the next line of `judgeScratch`; undefined: none is ahead.
 *
 * @param room, verdict as `judgeScratch` took and gave them for `left`
 */
export function fallToNextLine(
  room: number,
  left: number,
  { kind, needed }: ScratchVerdict,
): number | undefined {
  if (kind === "enough") return left - Math.max(room * SCARCE_PART, needed);
  return kind === "short" || needed === 0 ? undefined : left - needed;
}

/** Drops the samples that are too old and adds `newest`. */
export function recentSamples(samples: readonly ScratchSample[], newest: ScratchSample): ScratchSample[] {
  return [...samples.filter(({ time }) => newest.time - time <= RECENT_MS), newest];
}

/** The fastest fall between any two samples, in bytes per second. */
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
