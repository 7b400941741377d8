import fc from "fast-check";
import type { Geometry } from "../../../src/backup/image/image.js";
import { RawWriter } from "../../../src/backup/image/raw-writer.js";
import { anyWish, finished, KiB, scratch, store, type Wish } from "./support.js";

/** An increment as a raw file and its map. */
interface RawIncrement {
  readonly wishes: readonly Wish[];
  readonly geometry: Geometry;
  readonly file: string;
  readonly mapPath: string;
  /** Whether the disk ends where its last cluster does. */
  readonly isWhole: boolean;
}

/** Writes increments of random clusters, with content by the seed, until one does not hold. */
export async function assertOfRawIncrements(
  seed: number,
  holds: (increment: RawIncrement) => Promise<boolean>,
): Promise<void> {
  const at = await scratch();
  let run = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.array(anyWish, { maxLength: 12 }),
      fc.integer({ min: 0, max: 5000 }),
      async (wishes, missing) => {
        const clusterSize = 16 * KiB;
        const geometry = { clusterSize, virtualSize: Math.max(0, wishes.length * clusterSize - missing) };
        const [file, mapPath] = [at(`disk${run}.raw`), at(`disk${run++}.map`)];
        const writer = await RawWriter.create(file, { geometry, mapPath });
        store(writer, wishes, seed);
        await finished(writer);
        return await holds({ wishes, geometry, file, mapPath, isWhole: missing === 0 });
      },
    ),
    { numRuns: 60 },
  );
}
