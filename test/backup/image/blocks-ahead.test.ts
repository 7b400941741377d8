import { setTimeout as sleep, setImmediate as turn } from "node:timers/promises";
import { expect, it } from "vitest";
import { blocksAhead } from "../../../src/backup/image/blocks-ahead.js";

const BLOCKS = Array.from({ length: 9 }, (_, index) => ({ at: index * 10, length: index === 8 ? 3 : 10 }));

it("hands blocks out in their order, and reads the next ones meanwhile", async () => {
  let reading = 0;
  let most = 0;
  const read = async (target: Buffer, { at }: { at: number }): Promise<void> => {
    reading += 1;
    most = Math.max(most, reading);
    await sleep(at % 20 === 0 ? 10 : 1);
    target.fill(at);
    reading -= 1;
  };
  const seen: number[] = [];
  const unwanted = new AbortController();
  for await (const { block, bytes } of blocksAhead(BLOCKS, 3, read, unwanted)) {
    seen.push(block.at);
    await turn();
    expect(bytes).toEqual(Buffer.alloc(block.length, block.at));
  }
  // A file may be read once more.
  expect(unwanted.signal.aborted).toBe(false);
  expect(seen).toEqual(BLOCKS.map(({ at }) => at));
  expect(most).toBe(3);
});

it("throws a failure in its turn, and waits for what is under way", async () => {
  let reading = 0;
  const unwanted = new AbortController();
  const read = async (_: Buffer, { at }: { at: number }): Promise<void> => {
    reading += 1;
    try {
      if (at === 20) throw new Error("the third one");
      await sleep(at === 0 ? 5 : at > 20 ? 60_000 : 1, undefined, { signal: unwanted.signal });
    } finally {
      reading -= 1;
    }
  };
  const seen: number[] = [];
  const all = async (): Promise<void> => {
    for await (const { block } of blocksAhead(BLOCKS, 4, read, unwanted)) seen.push(block.at);
  };
  await expect(all()).rejects.toThrow("the third one");
  expect(seen).toEqual([0, 10]);
  expect(reading).toBe(0);
});

it("reads no more for whoever has enough", async () => {
  let begun = 0;
  let ended = 0;
  const read = async (): Promise<void> => {
    begun += 1;
    await sleep(2);
    ended += 1;
  };
  for await (const _ of blocksAhead(BLOCKS, 2, read, new AbortController())) break;
  expect(begun).toBeLessThanOrEqual(3);
  expect(ended).toBe(begun);
});
