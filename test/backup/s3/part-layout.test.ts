import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { ComposedLayout } from "../../../src/backup/s3/composed-layout.js";
import {
  cheapBytesOf,
  imageBufferBytes,
  LEAST_PART,
  MOST_BARE_IMAGES,
  MOST_IMAGES,
  PartLayout,
} from "../../../src/backup/s3/part-layout.js";

const MIB = 1024 * 1024;
const GIB = 1024 * MIB;
const TIB = 1024 * GIB;
/** Of an image, where two are uploaded side by side; the other 16 of 96 MiB are those of digest files. */
const SHARE = imageBufferBytes(2);
/** Of one that is uploaded alone. */
const ALONE = imageBufferBytes(1);

/** What an image of a disk has at most. */
const mostOf = (disk: number): number => disk * 1.01 + 2 * MIB;
const layoutFor = (disk: number, bufferBytes = SHARE): PartLayout =>
  new PartLayout({ mostBytes: mostOf(disk), cheapBytes: cheapBytesOf({ bufferBytes }) });

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
  ["1 TiB, alone", TIB, 12, 7624, 516, 9479],
  ["16 TiB", 16 * TIB, 10, 3019, 2610, 9436],
  ["60 TiB", 60 * TIB, 10, 500, 5120, 12_788],
])(
  "of a disk of %s are composed of pieces that fit into memory",
  (_, disk, piece, plain, composed, count) => {
    const mostBytes = mostOf(disk);
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

it.each([
  ["with digest files beside them", MOST_IMAGES, 8],
  ["alone", MOST_BARE_IMAGES, 0],
])("never take more than 96 MiB, however many images are uploaded side by side %s", (_, most, beside) => {
  for (let atOnce = 1; atOnce <= most; atOnce += 1) {
    const bufferBytes = imageBufferBytes(atOnce);
    const part = Math.max(LEAST_PART, cheapBytesOf({ bufferBytes }));
    // The first part, one that is filled, and the one before it, which is on its way.
    const each = (Math.max(3, Math.floor(bufferBytes / part)) * part) / MIB + beside;
    expect(atOnce * each).toBeLessThanOrEqual(96);
  }
});

it("share 96 MiB with the digests of two disks, and take less alone", () => {
  expect([1, 2].map((atOnce) => atOnce * (imageBufferBytes(atOnce) / MIB + 8))).toEqual([56, 96]);
  expect([1, 2].map((atOnce) => cheapBytesOf({ bufferBytes: imageBufferBytes(atOnce) }) / MIB)).toEqual([
    12, 10,
  ]);
});

/** What docs/stores.md says of large disks, computed. */
it("are described as they are", () => {
  const page = readFileSync(new URL("../../../docs/stores.md", import.meta.url), "utf8");
  const cheapOf = (bufferBytes: number): number => cheapBytesOf({ bufferBytes });
  const gib = (bytes: number): string => {
    const number = bytes / GIB;
    return `${number < 10 ? Math.floor(10 * number) / 10 : Math.floor(number)} GiB`;
  };
  const mib = (bytes: number): string => `${(bytes / MIB).toLocaleString("en")} MiB`;
  const count = (number: number): string => number.toLocaleString("en", { maximumSignificantDigits: 3 });
  /** The largest disk, to a GiB, of which something is true. */
  const largest = (isTrue: (disk: number) => boolean): number => {
    let disk = GIB;
    while (isTrue(disk + GIB)) disk += GIB;
    return disk;
  };
  const fits = (share: number): number =>
    largest((disk) => !ComposedLayout.isNeeded(mostOf(disk), cheapOf(share)));
  const composed = (disk: number, share: number) => {
    const layout = ComposedLayout.of(mostOf(disk), cheapOf(share));
    const last = layout.indexAt(disk - 1);
    // Of each composed part: its upload is begun and completed, it is copied, and removed.
    const requests = last + 1 + 4 * (layout.partOf(last).number - layout.plainParts);
    return {
      plain: gib(layout.startOf(layout.plainParts)),
      part: mib(layout.partBytes),
      requests: count(requests),
      most: Math.floor(layout.startOf(layout.mostPieces) / TIB),
    };
  };
  const both = (disk: number, of: "plain" | "part" | "requests"): string =>
    `${composed(disk, SHARE)[of]} (${composed(disk, ALONE)[of]})`;
  expect(composed(60 * TIB, SHARE).most).toBe(composed(60 * TIB, ALONE).most);
  const failing = (most: number): string => `fails beyond ${most} TiB (\`E_S3_FAILED\`): keep it in a folder`;

  /** Where one more part would exceed the share. */
  const within = (disk: number, share: number): number => {
    const layout = layoutFor(disk, share);
    let index = 1;
    while (layout.bytesOf(0) + 2 * layout.bytesOf(index) <= share) index += 1;
    return layout.startOf(index);
  };
  const isWithin = (share: number) => (disk: number) => memoryAt(layoutFor(disk, share), disk) <= share;
  const inOrder = (bytes: number): number => new PartLayout({ mostBytes: bytes }).bytesOf(0);
  const most = (layout: PartLayout): number => Math.floor(layout.startOf(layout.mostPieces) / TIB);
  const full = (disk: number): string => `${(memoryAt(layoutFor(disk), disk) / GIB).toFixed(1)} GiB`;

  const lines = [
    `parts of 8 to ${mib(cheapOf(ALONE))}`,
    `of more than ${gib(fits(SHARE))}, and for a single one of more than ${gib(fits(ALONE))}, that is not enough`,
    `pieces of ${mib(cheapOf(SHARE))} (of a single disk ${mib(cheapOf(ALONE))})`,
    ...[124 * GIB, TIB, 16 * TIB].map((disk) =>
      [
        `| ${disk < TIB ? gib(disk) : `${disk / TIB} TiB`}`,
        both(disk, "plain"),
        both(disk, "part"),
        `${both(disk, "requests")} |`,
      ].join(" | "),
    ),
    `| 60 TiB | ${both(60 * TIB, "plain")} | ${both(60 * TIB, "part")} | ${failing(composed(60 * TIB, SHARE).most)} |`,
    `| up to ${gib(largest(isWithin(SHARE)))} (${gib(largest(isWithin(ALONE)))}) | it is full | 96 MiB of the two (56 MiB) | ${mib(SHARE)} up to ${gib(9500 * SHARE)} (${mib(ALONE)} up to ${gib(9500 * ALONE)}) |`,
    ...[TIB, 16 * TIB].map(
      (disk) =>
        `| ${disk / TIB} TiB | ${gib(within(disk, SHARE))} are stored of each (${gib(within(disk, ALONE))}) | ${full(disk)} of each | ${mib(inOrder(disk))} |`,
    ),
    `| 60 TiB | ${gib(within(60 * TIB, SHARE))} are stored of each (${gib(within(60 * TIB, ALONE))}) | ${failing(most(layoutFor(60 * TIB)))} | fails beyond ${most(new PartLayout({ mostBytes: 60 * TIB }))} TiB |`,
  ];
  expect(lines.filter((line) => !page.includes(line))).toEqual([]);
});
