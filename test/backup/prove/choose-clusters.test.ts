import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ClusterChoice, offsetOf } from "../../../src/backup/prove/choose-clusters.js";
import type { Provable } from "../../../src/backup/prove/provable.js";
import { Reservoir } from "../../../src/backup/prove/reservoir.js";
import { SeededRandom } from "../../../src/backup/prove/seeded-random.js";

const CLUSTER = 64 * 1024;

type Kind = "data" | "lost" | "appeared" | "zero";

/** Runs of clusters of the given kinds and lengths, one behind the other; a gap is dirty. */
function disk(...parts: readonly (readonly [kind: Kind | "gap", count: number])[]): {
  runs: Provable[];
  size: number;
} {
  let cluster = 0;
  const runs: Provable[] = [];
  for (const [kind, count] of parts) {
    const place = { offset: cluster * CLUSTER, length: count * CLUSTER, clusterSize: CLUSTER, count };
    if (kind !== "gap") {
      runs.push({
        ...place,
        kind: kind === "data" || kind === "lost" ? "digests" : "zero",
        readsAsZeroes: kind === "lost" || kind === "zero",
        differing: async () => [],
      });
    }
    cluster += count;
  }
  return { runs, size: cluster * CLUSTER };
}

function choose({ runs, size }: { runs: Provable[]; size: number }, amount: number, seed: string): number[] {
  const choice = new ClusterChoice(amount, size, new SeededRandom(seed));
  for (const run of runs) choice.offer(run);
  return choice.chosen().map((cluster) => offsetOf(cluster) / CLUSTER);
}

const part = fc.tuple(
  fc.constantFrom<Kind | "gap">("data", "lost", "appeared", "zero", "gap"),
  fc.integer({ min: 1, max: 300 }),
);

describe("the choice of clusters", () => {
  it("is as large as it can be, in guest order, without repetition, and the same for the same seed", () => {
    const story = fc.record({
      parts: fc.array(part, { minLength: 1, maxLength: 12 }),
      amount: fc.integer({ min: 1, max: 200 }),
      seed: fc.string({ minLength: 1 }),
    });
    fc.assert(
      fc.property(story, ({ parts, amount, seed }) => {
        const guest = disk(...parts);
        const chosen = choose(guest, amount, seed);
        const worthReading = guest.runs.filter(
          ({ kind, readsAsZeroes }) => kind === "digests" || !readsAsZeroes,
        );
        const total = worthReading.reduce((sum, { count }) => sum + count, 0);
        expect(chosen).toHaveLength(Math.min(amount, total));
        expect(chosen).toEqual([...new Set(chosen)].sort((a, b) => a - b));
        const isWorthReading = (cluster: number): boolean =>
          worthReading.some(({ offset, length }) => {
            const at = cluster * CLUSTER;
            return at >= offset && at < offset + length;
          });
        expect(chosen.every(isWorthReading)).toBe(true);
        expect(choose(guest, amount, seed)).toEqual(chosen);
      }),
    );
  });

  it("has the first and the last cluster of data, and one of each doubling of the distance from the start", () => {
    const guest = disk(["data", 100_000]);
    fc.assert(
      fc.property(fc.string(), (seed) => {
        const chosen = choose(guest, 64, seed);
        expect(chosen.slice(0, 2)).toEqual([0, 1]);
        expect(chosen.at(-1)).toBe(99_999);
        for (let from = 2; from < 2 ** 15; from *= 2) {
          expect(chosen.some((cluster) => cluster >= from && cluster < 2 * from)).toBe(true);
        }
        for (let eighth = 0; eighth < 8; eighth += 1) {
          expect(chosen.filter((c) => Math.floor((c * 8) / 100_000) === eighth).length).toBeGreaterThan(0);
        }
      }),
    );
  });

  it("never misses data that the server's map calls zeroes, however little it is", () => {
    const parts = fc.tuple(fc.integer({ min: 0, max: 50_000 }), fc.integer({ min: 1, max: 50_000 }));
    fc.assert(
      fc.property(parts, fc.string(), ([before, behind], seed) => {
        const guest = disk(["data", before], ["lost", 1], ["data", behind]);
        expect(choose(guest, 64, seed)).toContain(before);
      }),
    );
  });

  it("prefers data to zeroes, but has some of both", () => {
    const guest = disk(["appeared", 50_000], ["data", 500], ["zero", 50_000]);
    fc.assert(
      fc.property(fc.string(), (seed) => {
        const chosen = choose(guest, 64, seed);
        const data = chosen.filter((cluster) => cluster >= 50_000 && cluster < 50_500).length;
        expect({ data, zeroes: chosen.length - data }).toEqual({ data: 56, zeroes: 8 });
      }),
    );
  });

  it("differs from seed to seed, so that every cluster has its turn", () => {
    const guest = disk(["data", 1000]);
    const seen = new Set(Array.from({ length: 200 }, (_, i) => choose(guest, 64, `seed ${i}`)).flat());
    expect(seen.size).toBeGreaterThan(995);
  });
});

describe("a reservoir", () => {
  it("keeps every element with the same probability, whatever the portions that they come in", () => {
    const counts = new Array<number>(50).fill(0);
    const random = new SeededRandom("portions");
    for (let round = 0; round < 4000; round += 1) {
      const reservoir = new Reservoir<number>(5, random);
      for (let offered = 0; offered < 50; ) {
        const [first, count] = [offered, Math.min(1 + random.below(20), 50 - offered)];
        reservoir.offer(count, (i) => first + i);
        offered += count;
      }
      expect(new Set(reservoir.kept).size).toBe(5);
      for (const element of reservoir.kept) counts[element] = (counts[element] ?? 0) + 1;
    }
    // 400 are expected of each, with a standard deviation of 19.
    expect(Math.min(...counts)).toBeGreaterThan(310);
    expect(Math.max(...counts)).toBeLessThan(490);
  });
});
