import { setImmediate as tick } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { ReorderBuffer } from "../../../src/backup/pull/reorder.js";

describe("values in order", () => {
  it("are passed on by index, in whatever order they come", () => {
    const seen: string[] = [];
    const inOrder = new ReorderBuffer((value: string) => seen.push(value));
    inOrder.put(2, "c");
    inOrder.put(0, "a");
    expect(seen).toEqual(["a"]);
    inOrder.put(1, "b");
    expect(seen).toEqual(["a", "b", "c"]);
  });

  it("do not pile up without bound behind a late one", async () => {
    const seen: number[] = [];
    const inOrder = new ReorderBuffer((value: number) => seen.push(value));
    let put = 0;
    const worker = (async () => {
      for (let index = 1; index <= 5000; index += 1) {
        await inOrder.capacity();
        inOrder.put(index, index);
        put = index;
      }
    })();
    for (let i = 0; i < 20; i += 1) await tick();
    expect(seen).toEqual([]);
    const waiting = put;
    expect(waiting).toBeLessThan(5000);
    await tick();
    expect(put).toBe(waiting);
    inOrder.put(0, 0);
    await worker;
    expect(seen).toEqual(Array.from({ length: 5001 }, (_, i) => i));
  });

  it("release all waits when the missing one will never come", async () => {
    const inOrder = new ReorderBuffer((_: number) => undefined);
    let waits = true;
    const worker = (async () => {
      for (let index = 1; waits; index += 1) {
        await inOrder.capacity();
        if (waits) inOrder.put(index, index);
      }
    })();
    for (let i = 0; i < 20; i += 1) await tick();
    waits = false;
    inOrder.giveUp();
    await worker;
  });
});
