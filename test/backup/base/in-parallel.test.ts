import { expect, it } from "vitest";
import { closeAll } from "../../../src/backup/base/in-parallel.js";

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
