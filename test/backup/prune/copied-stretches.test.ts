import { describe, expect, it } from "vitest";
import { findStretches, ShownClusters } from "../../../src/backup/prune/copied-stretches.js";

/** `#` is shown. */
function shown(text: string): ShownClusters {
  const clusters = new ShownClusters(text.length);
  for (const [i, letter] of [...text].entries()) if (letter === "#") clusters.add(i, i + 1);
  return clusters;
}

const OPTIONS = { least: 5, head: 1, most: 100 };

describe("what a store can copy of an image", () => {
  it("is a long stretch, over gaps as long as two thirds of it are shown", () => {
    const found = findStretches([shown("###.###....#.#...######..##")], 0, OPTIONS);
    expect(found).toEqual({
      stretches: [
        { image: 0, first: 0, end: 7 },
        { image: 0, first: 11, end: 23 },
      ],
      others: 2,
    });
  });

  it("leaves what is short, and what can't be copied", () => {
    expect(findStretches([shown("####"), undefined, shown(".#####")], 3, OPTIONS)).toEqual({
      stretches: [{ image: 2, first: 1, end: 6 }],
      others: 7,
    });
  });

  it("leaves enough for the part with the header, of the shortest stretches", () => {
    const images = [shown("#".repeat(12)), shown("######")];
    expect(findStretches(images, 0, { ...OPTIONS, head: 6 })).toEqual({
      stretches: [{ image: 0, first: 0, end: 12 }],
      others: 6,
    });
    expect(findStretches(images, 4, { ...OPTIONS, head: 6 })).toEqual({
      stretches: [
        { image: 0, first: 0, end: 12 },
        { image: 1, first: 1, end: 6 },
      ],
      others: 5,
    });
    expect(findStretches([shown("#######.")], 0, { ...OPTIONS, head: 9 })).toEqual({
      stretches: [],
      others: 7,
    });
  });

  it("is no more stretches than a store takes parts, the longest ones", () => {
    const found = findStretches([shown("#####.........#######.........######")], 0, { ...OPTIONS, most: 2 });
    expect(found.stretches.map(({ first }) => first)).toEqual([14, 30]);
    expect(found.others).toBe(5);
  });
});
