import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { judgeScratch, recentSamples, type ScratchSample } from "../../../src/backup/guest/judge-scratch.js";

const MiB = 1024 ** 2;
const GiB = 1024 ** 3;

/** Samples at the given seconds, each with the bytes left of 1 GiB. */
function samples(...points: readonly (readonly [seconds: number, left: number])[]): ScratchSample[] {
  return points.map(([seconds, left]) => ({ time: seconds * 1000, used: GiB - left, left }));
}

describe("the space for scratch files", () => {
  it("is enough above a quarter, scarce below, and short below a tenth, if little is written", () => {
    const kindAt = (left: number) => judgeScratch(GiB, samples([0, left + MiB], [5, left])).kind;
    expect(kindAt(0.25 * GiB)).toBe("enough");
    expect(kindAt(0.25 * GiB - 1)).toBe("scarce");
    expect(kindAt(0.1 * GiB)).toBe("scarce");
    expect(kindAt(0.1 * GiB - 1)).toBe("short");
  });

  it("is short as soon as the fastest fall would use up the rest within three seconds", () => {
    const falling = samples([0, 900 * MiB], [1, 750 * MiB], [2, 600 * MiB]);
    expect(judgeScratch(GiB, falling)).toMatchObject({ kind: "enough", fall: 150 * MiB, needed: 450 * MiB });
    const further = [...falling, ...samples([3, 449 * MiB])];
    expect(judgeScratch(GiB, further).kind).toBe("short");
    const slower = [...falling, ...samples([5, 450 * MiB])];
    expect(judgeScratch(GiB, slower)).toMatchObject({ kind: "enough", needed: 450 * MiB });
  });

  it("counts a fall within less than a second as if it took a second", () => {
    expect(judgeScratch(GiB, samples([0, 800 * MiB], [0.25, 700 * MiB])).fall).toBe(100 * MiB);
    const steady = samples([0, 800 * MiB], [0.25, 700 * MiB], [0.5, 600 * MiB], [1, 400 * MiB]);
    expect(judgeScratch(GiB, steady).fall).toBe(400 * MiB);
  });

  it("forgets falls older than ten seconds, and never counts a rise as a fall", () => {
    const [first, second, third] = samples([0, 900 * MiB], [1, 500 * MiB], [11, 500 * MiB]);
    if (!first || !second || !third) throw new Error("three samples");
    expect(judgeScratch(GiB, recentSamples([first, second], third)).fall).toBe(0);
    expect(judgeScratch(GiB, samples([0, 500 * MiB], [1, 900 * MiB])).fall).toBe(0);
  });

  it("keeps to the given reserve, and by default reserves at most 4 GiB", () => {
    const left = samples([0, 0.3 * GiB]);
    expect(judgeScratch(GiB, left, 0.4 * GiB)).toMatchObject({ kind: "short", needed: 0.4 * GiB });
    expect(judgeScratch(1000 * GiB, [], undefined).needed).toBe(4 * GiB);
    expect(judgeScratch(GiB, samples([0, MiB]), MiB).kind).toBe("scarce");
  });

  it("is scarce, never short, if nothing is reserved", () => {
    expect(judgeScratch(GiB, samples([0, 900 * MiB], [1, 0]), 0)).toMatchObject({
      kind: "scarce",
      needed: 0,
    });
  });

  it("is short early enough for a guest that writes steadily and stops within three seconds", () => {
    const story = fc.record({
      room: fc.integer({ min: MiB, max: 100 * GiB }),
      seconds: fc.integer({ min: 5, max: 300 }),
    });
    fc.assert(
      fc.property(story, ({ room, seconds }) => {
        const rate = room / seconds;
        let recent: ScratchSample[] = [];
        for (let time = 0; ; time += 250) {
          const used = Math.min(room, (rate * time) / 1000);
          recent = recentSamples(recent, { time, used, left: room - used });
          if (judgeScratch(room, recent).kind !== "short") continue;
          expect(room - used).toBeGreaterThanOrEqual(0);
          // The guest stops within the reaction time, and what it writes until then still fits.
          expect(used + rate * 2.75).toBeLessThanOrEqual(room);
          return;
        }
      }),
      { numRuns: 30 },
    );
  });
});
