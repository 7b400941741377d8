import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { closeAll, openAll } from "../../../src/backup/base/in-parallel.js";

it("closes everything in order, also after a failure, and throws the first one", async () => {
  const closed: number[] = [];
  const closing = (number: number, failure?: string) => ({
    close: async (): Promise<void> => {
      closed.push(number);
      if (failure !== undefined) throw new Error(failure);
    },
  });
  const all = closeAll(closing(1), closing(2, "first"), undefined, closing(3, "second"), closing(4));
  await expect(all).rejects.toThrow("first");
  expect(closed).toEqual([1, 2, 3, 4]);
  await closeAll(closing(5), undefined);
  expect(closed).toEqual([1, 2, 3, 4, 5]);
});

it("opens all side by side, and none if one can't be opened", async () => {
  const [opened, closed]: [number[], number[]] = [[], []];
  const open =
    (...bad: readonly number[]) =>
    async (item: number) => {
      // The last ones are the first to be ready.
      await sleep(50 - 10 * item);
      if (bad.includes(item)) throw new Error(`${item} can't be opened`);
      opened.push(item);
      return { item, close: async () => void closed.push(item) };
    };
  const items = [0, 1, 2, 3];
  expect((await openAll(items, 4, open())).map(({ item }) => item)).toEqual(items);
  expect(opened).toEqual([3, 2, 1, 0]);
  await expect(openAll(items, 4, open(1, 2))).rejects.toThrow("1 can't");
  expect(closed).toEqual([0, 3]);
  // What has not begun by then isn't begun.
  opened.length = 0;
  await expect(openAll(items, 1, open(1))).rejects.toThrow("1 can't");
  expect([opened, closed]).toEqual([[0], [0, 3, 0]]);
});
