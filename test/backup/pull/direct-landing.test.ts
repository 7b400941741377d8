import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Extent } from "../../../src/backup/base/extent.js";
import {
  ALL_SUBCLUSTERS,
  type ClusterRun,
  type Geometry,
  type PlannedRun,
} from "../../../src/backup/image/image.js";
import { DirectLanding } from "../../../src/backup/pull/direct-landing.js";
import { plan } from "../../../src/backup/pull/plan.js";
import { requestsOf, type Segment } from "../../../src/backup/pull/segment.js";
import type { Stretch } from "../../../src/nbd/index.js";
import { collect } from "../../support/collect.js";
import { inPiecesOf, MemoryImage } from "../../support/memory-image.js";

const CLUSTER = 16 * 1024;
const SUB = CLUSTER / 32;

/** A subcluster of the disk: what the maps call it, and what it really holds. */
interface Sub {
  readonly state: "clean" | "zero" | "data";
  /** The maps may call it data although it is zeroes. */
  readonly empty: boolean;
}

const sub: fc.Arbitrary<Sub> = fc.record({
  state: fc.constantFrom("clean", "clean", "zero", "data", "data"),
  empty: fc.boolean(),
});
const run = fc.tuple(sub, fc.oneof(fc.integer({ min: 1, max: 40 }), fc.constantFrom(1, 32, 64)));
const story = fc.record({
  subs: fc
    .array(run, { minLength: 1, maxLength: 14 })
    .map((runs) => runs.flatMap(([one, count]) => new Array<Sub>(count).fill(one))),
  /** Bytes that are missing from the last subcluster of the disk. */
  missing: fc.constantFrom(0, 1, 200, SUB - 1),
  clusters: fc.constantFrom(1, 2, 5, 100),
  readThrough: fc.constantFrom(0, SUB, 4 * SUB, CLUSTER),
  sizes: fc.array(fc.integer({ min: 1, max: 3 * CLUSTER }), { minLength: 1, maxLength: 5 }),
  /** Pieces that come twice: first with other bytes. */
  again: fc.array(fc.boolean(), { minLength: 1, maxLength: 6 }),
  shuffle: fc.array(fc.nat(1000), { minLength: 1, maxLength: 30 }),
});

function content({ state, empty }: Sub, at: number): number {
  if (state === "zero" || (state === "data" && empty)) return 0;
  return (at % 251) + 1;
}

async function* extentsOf(subs: readonly Sub[], size: number): AsyncGenerator<readonly Extent[]> {
  for (const [at, { state }] of subs.entries()) {
    const offset = at * SUB;
    yield [{ offset, length: Math.min(SUB, size - offset), state }];
  }
}

describe("DirectLanding", () => {
  it("stores what the maps call data and nothing else, however it arrives", async () => {
    await fc.assert(
      fc.asyncProperty(story, async ({ subs, missing, clusters, readThrough, sizes, again, shuffle }) => {
        const size = subs.length * SUB - missing;
        const geometry: Geometry = { virtualSize: size, clusterSize: CLUSTER };
        const disk = Buffer.from(
          Array.from({ length: size }, (_, at) => content(subs[Math.floor(at / SUB)] as Sub, at)),
        );
        const image = new MemoryImage(geometry);
        const segments = await collect(
          plan(extentsOf(subs, size), { geometry, segmentBytes: clusters * CLUSTER }),
        );
        for (const segment of segments) {
          const landing = new DirectLanding(segment, image);
          const reads = requestsOf(landing.ranges, { readThrough, mostRead: clusters * CLUSTER });
          for (const { length } of reads) expect(length).toBeLessThanOrEqual(clusters * CLUSTER);
          const pieces = reads.flatMap((read) => inPiecesOf(read, sizes));
          shuffled(pieces, shuffle).forEach(({ offset, length }, at) => {
            if (again[at % again.length]) landing.data(offset, Buffer.alloc(length, 0xff));
            const bytes = disk.subarray(offset, offset + length);
            if (bytes.every((byte) => byte === 0)) landing.zeroes(offset, length);
            else landing.data(offset, bytes);
          });
          for (const settled of landing.outcome()) image.addRun(settled);
        }
        const below = Buffer.alloc(size, 0xcc);
        const expected = Buffer.from(disk);
        for (const [at, { state }] of subs.entries()) {
          if (state === "clean") expected.fill(0xcc, at * SUB, Math.min(size, (at + 1) * SUB));
        }
        expect(image.over(below).equals(expected)).toBe(true);
        expectInPlaces(image, segments);
      }),
      { numRuns: 300 },
    );
  });

  const geometry = { virtualSize: 10 * CLUSTER - 300, clusterSize: CLUSTER };
  const segmentOf = (...runs: PlannedRun[]): Segment => {
    const clusters = runs.reduce((sum, { kind, count }) => sum + (kind === "zero" ? 0 : count), 0);
    return { index: 0, firstRank: 0, clusters, runs };
  };
  function landed(segment: Segment, give: (landing: DirectLanding) => void): [MemoryImage, ClusterRun[]] {
    const image = new MemoryImage(geometry);
    const landing = new DirectLanding(segment, image);
    give(landing);
    return [image, landing.outcome()];
  }

  it("writes nothing for zeroes, and makes them zero clusters", () => {
    const [image, runs] = landed(segmentOf({ kind: "data", cluster: 2, count: 3 }), (landing) => {
      landing.data(2 * CLUSTER, Buffer.alloc(CLUSTER));
      landing.zeroes(3 * CLUSTER, CLUSTER / 2);
      landing.data(3.5 * CLUSTER, Buffer.alloc(CLUSTER / 2));
      landing.data(4 * CLUSTER, Buffer.alloc(CLUSTER, 1));
    });
    expect(image.writes).toEqual([{ hostOffset: 3 * CLUSTER, length: CLUSTER }]);
    expect(runs).toEqual([
      { kind: "zero", cluster: 2, count: 2 },
      { kind: "data", cluster: 4, count: 1, hostOffset: 3 * CLUSTER },
    ]);
  });

  it("writes neighbouring clusters in one write", () => {
    const [image] = landed(segmentOf({ kind: "data", cluster: 0, count: 4 }), (landing) => {
      landing.data(100, Buffer.alloc(4 * CLUSTER - 100, 7));
      landing.data(0, Buffer.alloc(100));
    });
    expect(image.writes[0]).toEqual({ hostOffset: CLUSTER + 100, length: 4 * CLUSTER - 100 });
  });

  it("refuses to complete a segment with missing bytes", () => {
    const short = () =>
      landed(segmentOf({ kind: "data", cluster: 0, count: 2 }), (landing) => {
        landing.data(0, Buffer.alloc(2 * CLUSTER - 1, 7));
      });
    expect(short).toThrow(`expected ${2 * CLUSTER} bytes`);
  });

  it("drops clean bytes that were read through", () => {
    const segment = segmentOf(
      { kind: "data", cluster: 0, count: 1 },
      { kind: "partial", cluster: 2, count: 1, dataMask: 0b1010, zeroMask: 0 },
    );
    const [image] = landed(segment, (landing) => landing.data(0, Buffer.alloc(3 * CLUSTER, 7)));
    expect(image.writes).toEqual([
      { hostOffset: CLUSTER, length: CLUSTER },
      { hostOffset: 2 * CLUSTER + SUB, length: SUB },
      { hostOffset: 2 * CLUSTER + 3 * SUB, length: SUB },
    ]);
  });

  it("makes a partial cluster's subclusters zero if no data comes", () => {
    const partial = { kind: "partial", cluster: 1, count: 1, dataMask: 0x80000001, zeroMask: 2 } as const;
    const [image, runs] = landed(segmentOf(partial), (landing) => {
      landing.zeroes(CLUSTER, SUB);
      landing.data(2 * CLUSTER - SUB, Buffer.alloc(SUB));
    });
    expect(image.writes).toEqual([]);
    expect(runs).toEqual([{ ...partial, dataMask: 0, zeroMask: 0x80000003, hostOffset: 0 }]);
  });

  it("truncates the last cluster at the end of the disk", () => {
    const segment = segmentOf({ kind: "data", cluster: 9, count: 1 });
    const [image, runs] = landed(segment, (landing) => {
      expect(landing.ranges).toEqual([{ offset: 9 * CLUSTER, end: 10 * CLUSTER - 300, slot: 0 }]);
      landing.data(9 * CLUSTER, Buffer.alloc(CLUSTER - 300, 1));
    });
    expect(image.writes).toEqual([{ hostOffset: CLUSTER, length: CLUSTER - 300 }]);
    expect(runs).toEqual([{ kind: "data", cluster: 9, count: 1, hostOffset: CLUSTER }]);
  });

  it("believes the later of two deliveries, even if it is zeroes", () => {
    const [image, runs] = landed(segmentOf({ kind: "data", cluster: 0, count: 2 }), (landing) => {
      landing.data(0, Buffer.alloc(CLUSTER + 100, 0xaa));
      landing.data(0, Buffer.alloc(CLUSTER));
      landing.zeroes(CLUSTER, CLUSTER);
    });
    const disk = image.over(Buffer.alloc(geometry.virtualSize, 0xcc), runs);
    expect(disk.subarray(0, 2 * CLUSTER).equals(Buffer.alloc(2 * CLUSTER))).toBe(true);
  });

  it("knows when the first byte came", () => {
    const before = performance.now();
    const landing = new DirectLanding(
      segmentOf({ kind: "data", cluster: 0, count: 1 }),
      new MemoryImage(geometry),
    );
    expect(landing.firstByte).toBeUndefined();
    landing.zeroes(0, 10);
    const first = landing.firstByte;
    landing.data(10, Buffer.alloc(10));
    expect(landing.firstByte).toBe(first);
    expect(first).toBeGreaterThanOrEqual(before);
  });

  it("passes on an error of the write", () => {
    const image = new MemoryImage(geometry);
    image.writeNow = () => {
      throw new Error("no space left");
    };
    const landing = new DirectLanding(segmentOf({ kind: "data", cluster: 0, count: 1 }), image);
    expect(() => landing.data(0, Buffer.alloc(10, 1))).toThrow("no space left");
  });
});

function shuffled(pieces: readonly Stretch[], keys: readonly number[]): Stretch[] {
  return pieces
    .map((piece, at) => ({ piece, key: keys[at % keys.length] ?? 0 }))
    .sort((a, b) => a.key - b.key)
    .map(({ piece }) => piece);
}

/** Writes touch only bytes of the file that belong to data subclusters of the plan. */
function expectInPlaces(image: MemoryImage, segments: readonly Segment[]): void {
  const allowed = new Uint8Array(image.bytes.length);
  for (const { runs, firstRank } of segments) {
    let rank = firstRank;
    for (const planned of runs) {
      if (planned.kind === "zero" || (planned.kind === "partial" && planned.dataMask === 0)) continue;
      const mask = planned.kind === "partial" ? planned.dataMask : ALL_SUBCLUSTERS;
      for (let cluster = 0; cluster < planned.count; cluster += 1, rank += 1) {
        for (let bit = 0; bit < 32; bit += 1) {
          const at = image.hostOffset(0, rank) + bit * SUB;
          if (((mask >>> bit) & 1) === 1) allowed.fill(1, at, at + SUB);
        }
      }
    }
  }
  for (const { hostOffset, length } of image.writes) {
    expect(allowed.subarray(hostOffset, hostOffset + length).every((one) => one === 1)).toBe(true);
  }
}
