/**
 * Which times of points are wrong. Ids sort as points were made, so of two points whose times don't sort
 * likewise one is wrong at least:
 *
 *     id       1    2    3    4    5    6
 *     time    10   11   19   20   12   13        a clock was ahead at 3 and 4, or behind at 5 and 6
 *
 * The number of points on either side says nothing: a clock that is behind may stay so for months. So a time
 * is wrong only if something else tells so, and else doubtful.
 */

/** What tells when a point was made, in milliseconds since 1970. */
export interface ToldTimes {
  /** Its manifest. */
  readonly time: number;
  /** libvirt's checkpoint, by the hypervisor's clock. */
  readonly checkpoint: number | undefined;
  /** The oldest of its files, by the clock of the host that has them. A prune may make it younger. */
  readonly files: number | undefined;
}

/** Places of points, oldest first. */
interface JudgedTimes {
  readonly wrong: ReadonlySet<number>;
  /** Later than a point that was made after them: their clock was ahead, or the others' behind. */
  readonly tooLate: readonly number[];
  /** Earlier than a point that was made before them. */
  readonly tooEarly: readonly number[];
}

/** Before libvirt could take any such backup: version 6.0 was released on that day. */
const EARLIEST = Date.UTC(2020, 0, 15);
/** By so much times may disagree in any case: clocks are set now and then, and a job takes time to begin. */
const TOLERANCE_MS = 60_000;
/** By so much clocks of two hosts, or a point and its files, have to differ for one of them to be wrong. */
const CONTRADICTION_MS = 3_600_000;

/**
 * @param told of points in the order of their ids
 * @param isNamed whether the user says that the time of the point at this place is wrong
 */
export function judgeTimes(
  told: readonly ToldTimes[],
  now: number,
  isNamed: (place: number) => boolean,
): JudgedTimes {
  const wrong = new Set<number>();
  for (const [i, { time }] of told.entries()) {
    const isImpossible = time > now || (time < EARLIEST && now >= EARLIEST);
    if (isImpossible || isNamed(i)) wrong.add(i);
  }
  const before = outOfOrder(told, wrong);
  for (const i of [...before.tooLate, ...before.tooEarly]) if (isContradicted(told[i])) wrong.add(i);
  return { wrong, ...outOfOrder(told, wrong) };
}

/** Whether another clock says that the manifest's time is wrong. */
function isContradicted(told: ToldTimes | undefined): boolean {
  if (told === undefined) return false;
  const { time, checkpoint = time, files = time } = told;
  return Math.abs(checkpoint - time) > CONTRADICTION_MS || time - files > CONTRADICTION_MS;
}

function outOfOrder(
  told: readonly ToldTimes[],
  wrong: ReadonlySet<number>,
): Pick<JudgedTimes, "tooLate" | "tooEarly"> {
  const tooLate: number[] = [];
  const tooEarly: number[] = [];
  const places = [...told.keys()].filter((i) => !wrong.has(i));
  let latest = Number.NEGATIVE_INFINITY;
  for (const i of places) {
    const time = told[i]?.time ?? latest;
    if (time < latest - TOLERANCE_MS) tooEarly.push(i);
    latest = Math.max(latest, time);
  }
  let earliest = Number.POSITIVE_INFINITY;
  for (const i of places.toReversed()) {
    const time = told[i]?.time ?? earliest;
    if (time > earliest + TOLERANCE_MS) tooLate.unshift(i);
    earliest = Math.min(earliest, time);
  }
  return { tooLate, tooEarly };
}
