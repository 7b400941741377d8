import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ALL_SUBCLUSTERS } from "../../../src/backup/image/image.js";
import { ExtentIndex, type ExtentSource } from "../../../src/backup/serve/extent-index.js";

const LAYERS = [
  { clusterSize: 65_536, digestSize: 8 },
  { clusterSize: 16_384, digestSize: 32 },
  { clusterSize: 65_536, digestSize: 0 },
];

/** Pieces as a walk yields them: some continue the previous one in every respect, or in all but one. */
const step = fc.record({
  sectors: fc.integer({ min: 1, max: 400 }),
  kind: fc.constantFrom("zero", "continued", "continued", "elsewhere", "partial"),
  layer: fc.nat(2),
  clusters: fc.nat(1000),
});

describe("the extent index", () => {
  it("finds the place of every byte, and joins pieces that continue each other", () => {
    fc.assert(
      fc.property(fc.array(step, { minLength: 1, maxLength: 40 }), (steps) => {
        const index = new ExtentIndex(LAYERS);
        /** One entry per sector. */
        const expected: (ExtentSource | undefined)[] = [];
        for (const { sectors, kind, layer, clusters } of steps) {
          const offset = expected.length * 512;
          const { clusterSize, digestSize } = LAYERS[layer] as (typeof LAYERS)[number];
          // In a continued layer, the cluster number determines the place.
          const far = kind === "continued" ? 0 : 2000 + clusters;
          const placeOf = (at: number): ExtentSource | undefined => {
            const cluster = Math.floor(at / clusterSize) + far;
            if (kind === "zero") return undefined;
            const dataMask = kind === "partial" ? clusters + 1 : ALL_SUBCLUSTERS;
            return {
              layer,
              hostOffset: cluster * clusterSize,
              digestsAt: 64 + cluster * digestSize,
              dataMask,
            };
          };
          // A partial piece ends with its cluster.
          const room = (clusterSize - (offset % clusterSize)) / 512;
          const count = kind === "partial" ? Math.min(sectors, room) : sectors;
          index.append(count * 512, placeOf(offset));
          for (let i = 0; i < count; i += 1) expected.push(placeOf(offset + i * 512));
        }
        expect(index.end).toBe(expected.length * 512);
        for (let sector = 0; sector < expected.length; sector += 7) {
          const [piece] = index.extents(sector * 512, index.end);
          expect(piece?.place).toEqual(expected[sector]);
        }
        let at = 0;
        for (const { offset, length, place } of index.extents(0, index.end)) {
          expect([offset, place]).toEqual([at, expected[at / 512]]);
          at += length;
        }
        expect(at).toBe(index.end);
        expect([...index.extents(0, index.end)]).toHaveLength(index.length);
      }),
      { numRuns: 300 },
    );
  });

  it("joins pieces that are adjacent in the guest, in the image and in the digest file", () => {
    const index = new ExtentIndex(LAYERS);
    const place = { layer: 0, hostOffset: 65_536, digestsAt: 100, dataMask: ALL_SUBCLUSTERS };
    index.append(65_536, place);
    index.append(65_536, { ...place, hostOffset: 2 * 65_536, digestsAt: 108 });
    expect(index.length).toBe(1);
    // A new record of the digest file, another place in the image, another layer.
    index.append(65_536, { ...place, hostOffset: 3 * 65_536, digestsAt: 132 });
    index.append(65_536, { ...place, hostOffset: 5 * 65_536, digestsAt: 140 });
    index.append(65_536, { ...place, layer: 2, hostOffset: 6 * 65_536, digestsAt: 140 });
    expect(index.length).toBe(4);
    index.append(512, undefined);
    index.append(1_000_000, undefined);
    expect(index.length).toBe(5);
  });

  it("keeps partial clusters apart, and joins the stretches of one", () => {
    const index = new ExtentIndex(LAYERS);
    const place = { layer: 2, digestsAt: 0, dataMask: 0x8000_0001 };
    index.append(63_488, undefined);
    index.append(2048, { ...place, hostOffset: 65_536 });
    index.append(1024, { ...place, hostOffset: 2 * 65_536 });
    expect(index.length).toBe(3);
    index.append(1024, { ...place, hostOffset: 2 * 65_536 });
    expect(index.length).toBe(3);
  });

  it("stays right over many chunks of its arrays", () => {
    const index = new ExtentIndex(LAYERS);
    const count = 10_000;
    for (let i = 0; i < count; i += 1) {
      const hostOffset = (count - i) * 65_536;
      index.append(65_536, { layer: 0, hostOffset, digestsAt: 0, dataMask: ALL_SUBCLUSTERS });
    }
    expect(index.length).toBe(count);
    for (const i of [0, 1, 4095, 4096, 4097, 8191, 8192, count - 1]) {
      const [piece] = index.extents(i * 65_536 + 5, i * 65_536 + 10);
      expect(piece).toMatchObject({
        offset: i * 65_536 + 5,
        length: 5,
        place: { hostOffset: (count - i) * 65_536 },
      });
    }
    expect(() => [...index.extents(0, count * 65_536 + 1)]).toThrow(RangeError);
    expect([...index.extents(100, 100)]).toEqual([]);
  });
});
