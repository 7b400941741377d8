import { expect, it } from "vitest";
import { ComposedLayout } from "../../../src/backup/s3/composed-layout.js";
import { PartLayout } from "../../../src/backup/s3/part-layout.js";

const MIB = 1024 * 1024;
const GIB = 1024 * MIB;
const TIB = 1024 * GIB;
/** Of an image, where two are uploaded side by side; the other 16 of 96 MiB are those of digest files. */
const SHARE = 40 * MIB;

/** Of a disk that is as large: what its image has at most. */
const layoutFor = (disk: number): PartLayout =>
  new PartLayout({ mostBytes: disk * 1.01 + 2 * MIB, cheapBytes: SHARE / 4 });

/** Of the kept first part, one that is filled or sent, and the one after it. */
const memoryAt = (layout: PartLayout, stored: number): number =>
  layout.bytesOf(0) + 2 * layout.bytesOf(layout.indexAt(stored));

it.each([
  // Disk, bytes that are stored within the share, MiB of memory and number of parts if it is full
  ["1 GiB", GIB, GIB, 24, 129],
  ["74 GiB", 74 * GIB, 74 * GIB, 27, 8420],
  ["1 TiB", TIB, 35 * GIB, 498, 9454],
  ["16 TiB", 16 * TIB, 32 * GIB, 10_250, 9463],
])(
  "of a disk of %s keep to the memory while little is stored, and suffice",
  (_, disk, stored, full, count) => {
    const layout = layoutFor(disk);
    expect(memoryAt(layout, Math.min(stored, 20 * GIB))).toBeLessThanOrEqual(SHARE);
    expect(memoryAt(layout, stored)).toBeLessThanOrEqual(SHARE);
    expect(memoryAt(layout, disk) / MIB).toBe(full);
    expect(layout.indexAt(disk) + 1).toBe(count);
    expect(layout.indexAt(disk * 1.01)).toBeLessThan(9_500);
  },
);

it("of a disk of 60 TiB keep to the memory while little is stored, and hold 20 TiB", () => {
  const layout = layoutFor(60 * TIB);
  expect(memoryAt(layout, 31 * GIB)).toBeLessThanOrEqual(SHARE);
  expect(layout.startOf(10_000)).toBeGreaterThan(20 * TIB);
});

it.each([GIB, TIB, 16 * TIB, 60 * TIB])("follow one another without a gap (%d)", (disk) => {
  const layout = layoutFor(disk);
  let start = 0;
  for (let index = 0; index < 10_000; index += 1) {
    const bytes = layout.bytesOf(index);
    if (layout.startOf(index) !== start) expect.fail(`part ${index} begins at ${layout.startOf(index)}`);
    const found = [start, start + bytes - 1].map((at) => layout.indexAt(at));
    if (found.some((each) => each !== index)) expect.fail(`part ${index} is ${found}`);
    if (bytes < 8 * MIB || bytes > 5 * GIB) expect.fail(`part ${index} has ${bytes} bytes`);
    start += bytes;
  }
});

it("have the same size where a file is written in order, since its length is known", () => {
  const layout = new PartLayout({ mostBytes: TIB });
  expect([0, 5000, 9499].map((index) => layout.bytesOf(index) / MIB)).toEqual([111, 111, 111]);
});

it.each([
  // Disk, MiB of a piece, parts that are sent as they are, MiB of the others, number of parts if it is full
  ["124 GiB", 124 * GIB, 10, 9434, 520, 9497],
  ["1 TiB", TIB, 10, 7609, 520, 9480],
  ["1 TiB, alone", TIB, 20, 7761, 520, 9479],
  ["16 TiB", 16 * TIB, 10, 3019, 2610, 9436],
  ["60 TiB", 60 * TIB, 10, 500, 5120, 12_788],
])(
  "of a disk of %s are composed of pieces that fit into memory",
  (_, disk, piece, plain, composed, count) => {
    const mostBytes = disk * 1.01 + 2 * MIB;
    expect(ComposedLayout.isNeeded(mostBytes, piece * MIB)).toBe(true);
    const layout = ComposedLayout.of(mostBytes, piece * MIB);
    expect(layout.bytesOf(layout.indexAt(disk)) / MIB).toBe(piece);
    expect(layout.plainParts).toBe(plain);
    expect(layout.partBytes / MIB).toBe(composed);
    expect(layout.partOf(layout.indexAt(disk)).number).toBe(count);
    expect(layout.startOf(layout.mostPieces)).toBeGreaterThan(Math.min(mostBytes, 46 * TIB));
  },
);

it("of a disk are not composed if 9,500 that fit into memory suffice", () => {
  expect(ComposedLayout.isNeeded(9_500 * 10 * MIB, 10 * MIB)).toBe(false);
  expect(ComposedLayout.isNeeded(9_500 * 8 * MIB, MIB)).toBe(false);
});

it("that are composed follow one another without a gap", () => {
  const layout = new ComposedLayout({ pieceBytes: 10, plainParts: 2, piecesOfAPart: 3 });
  const parts = Array.from({ length: 9 }, (_, index) => layout.partOf(index));
  expect(parts.map(({ number }) => number)).toEqual([1, 2, 3, 3, 3, 4, 4, 4, 5]);
  expect(parts.map(({ first }) => first)).toEqual([0, 1, 2, 2, 2, 5, 5, 5, 8]);
  expect([0, 9, 10, 89].map((at) => layout.indexAt(at))).toEqual([0, 0, 1, 8]);
});
