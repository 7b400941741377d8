import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { onAbort } from "../../src/nbd/abort.js";
import { type AskStatus, blockStatus, type StatusBatch } from "../../src/nbd/block-status.js";
import { MapClock } from "../../src/nbd/map-limits.js";
import { Descriptors } from "../../src/nbd/wire/descriptors.js";
import { collect } from "../support/collect.js";
import { statusPayload } from "../support/mock-server.js";

const SIZE = 1000;

/** The true flags of each context, one per byte. */
type Truth = ReadonlyMap<string, readonly number[]>;

/** A server's answer from `offset` on: extents up to the length `reach`, which may be short or overshoot. */
function describeTruth(flags: readonly number[], offset: number, reach: number): Descriptors {
  const extents: [number, number][] = [];
  for (let at = offset; at < Math.min(offset + reach, flags.length); at++) {
    const last = extents.at(-1);
    // Equal neighbours are sometimes split, as servers do.
    if (last !== undefined && last[1] === flags[at] && at % 17 !== 0) last[0] += 1;
    else extents.push([1, flags[at] ?? 0]);
  }
  return new Descriptors(statusPayload(0, ...extents).subarray(4), 8);
}

function server(truth: Truth, reach: (offset: number, length: number, context: number) => number): AskStatus {
  return async (offset, length) =>
    new Map(
      [...truth].map(([name, flags], index) => [
        name,
        describeTruth(flags, offset, Math.max(1, reach(offset, length, index))),
      ]),
    );
}

function range(truth: Truth, offset: number, length: number, alignment: number, maxRequest: number) {
  const contexts = [...truth.keys()];
  return { offset, length, size: SIZE, alignment, maxRequest, contexts, ...generous() };
}

function generous() {
  const mapLimits = { mapTimeoutMs: 60_000, maxExtents: 1_000_000 };
  return { mapLimits, clock: new MapClock(mapLimits, () => false) };
}

/**
 * Every batch continues the previous one; every context covers its batch exactly, in merged and true extents.
 */
function expectExact(batches: readonly StatusBatch[], truth: Truth, offset: number, length: number): void {
  let position = offset;
  for (const batch of batches) {
    expect(batch.offset).toBe(position);
    expect([...batch.contexts.keys()]).toEqual([...truth.keys()]);
    for (const [name, extents] of batch.contexts) {
      let at = batch.offset;
      let before = -1;
      for (const extent of extents) {
        expect(extent.offset).toBe(at);
        expect(extent.length).toBeGreaterThan(0);
        expect(extent.flags).not.toBe(before);
        const real = truth.get(name)?.slice(at, at + extent.length);
        expect(real?.every((flag) => flag === extent.flags)).toBe(true);
        at += extent.length;
        before = extent.flags;
      }
      expect(at).toBe(batch.offset + batch.length);
      const { ends, flags } = batch.runs.get(name) ?? { ends: [], flags: [] };
      expect([...ends]).toEqual(extents.map(({ offset, length }) => offset + length));
      expect([...flags]).toEqual(extents.map((extent) => extent.flags));
    }
    position += batch.length;
  }
  expect(position).toBe(offset + length);
}

const flags = fc
  .array(fc.tuple(fc.integer({ min: 1, max: 120 }), fc.integer({ min: 0, max: 3 })), {
    minLength: 20,
    maxLength: 60,
  })
  .map((runs) => runs.flatMap(([length, flag]) => new Array<number>(length).fill(flag)))
  .map((list) => [...list, ...new Array<number>(SIZE).fill(0)].slice(0, SIZE));

describe("block status", () => {
  it("covers any range exactly, whatever the server leaves out or adds", async () => {
    const truths = fc.record({ one: flags, two: flags });
    const reaches = fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 3, maxLength: 20 });
    const bounds = fc
      .tuple(fc.nat(SIZE), fc.nat(SIZE))
      .map(([a, b]) => [Math.min(a, b), Math.max(a, b)] as const);
    await fc.assert(
      fc.asyncProperty(
        truths,
        reaches,
        bounds,
        fc.constantFrom(64, 128, 1024),
        async (both, reach, [from, to], maxRequest) => {
          const truth = new Map(Object.entries(both));
          let calls = 0;
          const ask = server(truth, () => reach[calls++ % reach.length] ?? 1);
          const batches = await collect(blockStatus(range(truth, from, to - from, 1, maxRequest), ask));
          expectExact(batches, truth, from, to - from);
        },
      ),
    );
  });

  it("asks for whole blocks, and returns only the requested range", async () => {
    const truth = new Map([["one", new Array<number>(SIZE).fill(2)]]);
    const asked: [number, number][] = [];
    const ask = server(truth, (offset, length) => {
      asked.push([offset, length]);
      return length;
    });
    const batches = await collect(blockStatus(range(truth, 130, 5, 64, 512), ask));
    expectExact(batches, truth, 130, 5);
    expect(asked).toEqual([[128, 64]]);
  });

  it("asks up to the end of an export that is not a multiple of the block size", async () => {
    const truth = new Map([["one", new Array<number>(SIZE).fill(2)]]);
    const ends: number[] = [];
    const ask = server(truth, (offset, length) => {
      ends.push(offset + length);
      return length;
    });
    expectExact(await collect(blockStatus(range(truth, 0, SIZE, 64, 512), ask)), truth, 0, SIZE);
    expect(Math.max(...ends)).toBe(SIZE);
  });

  it("works with a server whose extents don't follow its block size", async () => {
    const truth = new Map([["one", Array.from({ length: SIZE }, (_, at) => Math.floor(at / 70))]]);
    // One extent per reply: asking from the start of a block returns only what is known already.
    const ask = server(truth, (offset) => 70 - (offset % 70));
    expectExact(await collect(blockStatus(range(truth, 0, SIZE, 64, 512), ask)), truth, 0, SIZE);
  });

  it("runs ahead of the reader, but not far", async () => {
    const truth = new Map([["one", new Array<number>(SIZE).fill(2)]]);
    let calls = 0;
    const ask = server(truth, (_offset, length) => {
      calls += 1;
      return length;
    });
    const batches = blockStatus(range(truth, 0, SIZE, 1, 10), ask);
    expect(calls).toBe(0);
    const ahead: number[] = [];
    for (let taken = 1; taken <= 6; taken++) {
      await batches.next();
      ahead.push(calls - taken);
    }
    // It asks for many at once only when it knows how long the replies are.
    expect(ahead).toEqual([1, 1, 3, 7, 15, 15]);
    await batches.return();
  });

  it("asks for a short beginning too, whose extents come before the server has looked for the others", async () => {
    const MiB = 1024 * 1024;
    const size = 10_000 * MiB;
    const asked: [number, number][] = [];
    const ask: AskStatus = (offset, length) => {
      asked.push([offset / MiB, length / MiB]);
      if (offset > 0) return new Promise(() => undefined);
      return Promise.resolve(
        new Map([["one", new Descriptors(statusPayload(0, [length, 7]).subarray(4), 8)]]),
      );
    };
    const wanted = { offset: 0, length: size, size, alignment: 1, maxRequest: 4000 * MiB };
    const batches = blockStatus({ ...wanted, contexts: ["one"], ...generous() }, ask);
    expect((await batches.next()).value?.length).toBe(64 * MiB);
    expect(asked).toEqual([
      [0, 64],
      [64, 4000],
    ]);
  });

  it("returns a large reply in slices", async () => {
    const extents = Array.from({ length: 40_000 }, (_, index): [number, number] => [1, index % 2]);
    const reply = new Map([
      ["many", new Descriptors(statusPayload(0, ...extents).subarray(4), 8)],
      ["one", new Descriptors(statusPayload(0, [40_000, 7]).subarray(4), 8)],
    ]);
    const wanted = { offset: 5, length: 39_990, size: 40_000, alignment: 40_000, maxRequest: 40_000 };
    const range = { ...wanted, contexts: [...reply.keys()], ...generous() };
    const batches = await collect(blockStatus(range, async () => reply));
    expect(batches.map(({ length }) => length)).toEqual([16_384, 16_384, 39_990 - 2 * 16_384]);
    const many = batches.flatMap(({ contexts }) => contexts.get("many") ?? []);
    expect(many.every(({ offset, flags }, index) => offset === 5 + index && flags === offset % 2)).toBe(true);
    expect(batches.map(({ contexts }) => contexts.get("one")?.length)).toEqual([1, 1, 1]);
  });

  it("leaves no unhandled rejection when the reader stops early", async () => {
    const truth = new Map([["one", new Array<number>(SIZE).fill(2)]]);
    const good = server(truth, (_offset, length) => length);
    const ask: AskStatus = (offset, length, signal) =>
      offset === 0 ? good(offset, length, signal) : Promise.reject(new Error("later"));
    const batches = blockStatus(range(truth, 0, SIZE, 1, 10), ask);
    await batches.next();
    await batches.return();
    await new Promise((resolve) => setTimeout(resolve, 5));
  });

  it.each(["leaves", "fails", "is told to stop"])(
    "aborts requests that ran ahead when the reader %s",
    async (how) => {
      const truth = new Map([["one", new Array<number>(SIZE).fill(2)]]);
      const good = server(truth, (_offset, length) => length);
      const caller = new AbortController();
      const reason = new Error("enough");
      let asked = 0;
      let aborted = 0;
      const ask: AskStatus = (offset, length, signal) => {
        asked += 1;
        if (offset === 0) return good(offset, length, signal);
        if (how === "fails" && offset === 10) return Promise.reject(reason);
        return new Promise((_resolve, reject) =>
          onAbort(signal, () => {
            aborted += 1;
            reject(signal.reason);
          }),
        );
      };
      const batches = blockStatus(range(truth, 0, SIZE, 1, 10), ask, caller.signal);
      await batches.next();
      if (how === "leaves") await batches.return();
      else {
        const next = batches.next();
        if (how === "is told to stop") caller.abort(reason);
        await expect(next).rejects.toBe(reason);
      }
      expect(aborted).toBe(asked - (how === "fails" ? 2 : 1));
    },
  );
});
