import { expect, it } from "vitest";
import { Pace } from "../../bin/pace.js";

const MiB = 1024 ** 2;

it("the pace is that of the last seconds, and the time left follows from the place on the disk", () => {
  const pace = new Pace();
  expect(pace.at(100 * MiB, 0)).toEqual({ readPerSecond: 0, secondsLeft: undefined });
  // A minute in which nothing comes, then 1 MiB a second, half of which are zeroes that nobody reads.
  pace.note(0, 0, 0);
  for (let second = 60; second <= 90; second += 1)
    pace.note((second - 60) * MiB, ((second - 60) * MiB) / 2, second * 1000);
  const { readPerSecond, secondsLeft = 0 } = pace.at(100 * MiB, 90_000);
  expect(readPerSecond).toBeCloseTo(MiB / 2, -4);
  expect(secondsLeft).toBeCloseTo(70, 0);
  // A server that stands still.
  expect(pace.at(100 * MiB, 190_000).readPerSecond).toBeLessThan(MiB / 10);
  // The next point of the same disk, from its beginning.
  pace.note(0, 0, 191_000);
  pace.note(4 * MiB, 4 * MiB, 193_000);
  expect(pace.at(8 * MiB, 193_000)).toEqual({ readPerSecond: 2 * MiB, secondsLeft: 2 });
});
