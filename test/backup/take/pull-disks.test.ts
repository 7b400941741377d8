import { expect, it } from "vitest";
import type { Repository } from "../../../src/backup/repository/repository.js";
import { MOST_IMAGES } from "../../../src/backup/s3/part-layout.js";
import { pointsAtOnce } from "../../../src/backup/storage/open-store.js";
import { disksAtOnce } from "../../../src/backup/take/pull-disks.js";

const disks = Array.from({ length: 12 }, (_, i) => ({ name: `vd${i}` })) as unknown as Parameters<
  typeof disksAtOnce
>[0]["disks"];
const store = { isInStore: true } as Repository;
const folder = { isInStore: false } as Repository;

it("never upload more images side by side than there is memory for, whatever is asked for", () => {
  for (const jobs of [1, 2, 3, 4, 8, 100]) {
    const points = pointsAtOnce("s3://bucket/prefix", jobs);
    const images = points * disksAtOnce({ disks, repository: store, pointsAtOnce: points });
    expect(images).toBeGreaterThan(1);
    expect(images).toBeLessThanOrEqual(MOST_IMAGES);
  }
  expect([1, 2, 3].map((points) => disksAtOnce({ disks, repository: store, pointsAtOnce: points }))).toEqual([
    2, 1, 1,
  ]);
  expect([1, 4, 8].map((jobs) => pointsAtOnce("s3://bucket/prefix", jobs, true))).toEqual([1, 4, 4]);
});

it("are pulled into a folder as they were asked for", () => {
  expect(pointsAtOnce("/srv/backups", 100)).toBe(100);
  expect(disksAtOnce({ disks, repository: folder, pointsAtOnce: 100 })).toBe(8);
});
