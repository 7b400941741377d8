/**
 * Lets `toEqual` compare byte arrays at once. It asks for each element by its name otherwise, which takes
 * longer for a few megabytes than most tests. Arrays of different types are left to it.
 */
import { expect } from "vitest";

declare global {
  /** Whether it is done in this process, in which several files run. */
  var comparesBytes: true | undefined;
}

if (!globalThis.comparesBytes) {
  globalThis.comparesBytes = true;
  expect.addEqualityTesters([
    (a: unknown, b: unknown) =>
      a instanceof Uint8Array && b instanceof Uint8Array && a.constructor === b.constructor
        ? Buffer.compare(a, b) === 0
        : undefined,
  ]);
}
