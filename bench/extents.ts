/** Where on a disk the data of a workload lies. Pure. */

import type { Stretch } from "./images.js";

/** `count` stretches at equal distances. */
export function evenly(virtualSize: number, count: number, length: number): Stretch[] {
  const distance = Math.floor(virtualSize / count / length) * length;
  if (distance < length) throw new Error(`${count} stretches of ${length} bytes need a larger disk`);
  return Array.from({ length: count }, (_, index) => ({ offset: index * distance, length }));
}

/**
 * `count` stretches, one at a random place in each of `count` equal parts of the disk, never adjacent. The
 * places are the same in every run with the same seed.
 */
export function scattered(virtualSize: number, count: number, length: number, seed = 12345): Stretch[] {
  const places = Math.floor(virtualSize / count / length);
  if (places < 2) throw new Error(`${count} scattered stretches of ${length} bytes need a larger disk`);
  let state = seed;
  return Array.from({ length: count }, (_, index) => {
    state = (state * 1103515245 + 12345) % 2 ** 31;
    // The last place of each part stays free, so that neighbours don't become one extent.
    const place = Math.floor((state / 2 ** 31) * (places - 1));
    return { offset: (index * places + place) * length, length };
  });
}
