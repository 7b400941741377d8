/** What shows through a chain, against a drawing of it byte by byte. */
import { setTimeout as sleep } from "node:timers/promises";
import pLimit from "p-limit";
import { expect, it } from "vitest";
import type { LayerRun } from "../../../src/backup/chain/agreed-runs.js";
import { seenBlocks, seenThrough } from "../../../src/backup/chain/overlay.js";
import { maskStretches } from "../../../src/backup/image/image.js";
import { seededRuns } from "../../support/property-runs.js";

const CLUSTER = 64;

interface Drawn {
  readonly geometry: { readonly virtualSize: number; readonly clusterSize: number };
  readonly complete: boolean;
  readonly list: readonly LayerRun[];
}

it("shows of each byte the highest layer that defines it, and reads every layer to its end", async () => {
  const { runs, random, seed } = seededRuns(60);
  for (let run = 0; run < runs; run += 1) {
    const count = 1 + Math.floor(random() * 6);
    const layers = Array.from({ length: count }, (_, i) => draw(random, i === count - 1 && random() < 0.8));
    const size = Math.floor(random() * 40 * CLUSTER);
    const read = new Set<number>();
    const seen = layers.map((layer, i) => seenLayer(layer, random() < 0.5, () => read.add(i)));
    const found: string[] = [];
    const pieces = random() < 0.5 ? seenThrough(seen, size, ignore) : readAhead(seen, size);
    for await (const piece of pieces) {
      expect([seed, run, piece.offset]).toEqual([seed, run, found.length]);
      expect(piece.length).toBeGreaterThan(0);
      const from = piece.from && seen.indexOf(piece.from.layer);
      for (let i = 0; i < piece.length; i += 1) found.push(`${piece.state} ${from ?? ""}`);
    }
    expect([seed, run, found]).toEqual([seed, run, drawing(layers, size)]);
    expect([seed, run, read.size]).toEqual([seed, run, count]);
  }
});

const ignore = () => () => undefined;

async function* readAhead<L extends Parameters<typeof seenThrough>[0][number]>(
  layers: readonly L[],
  size: number,
  ahead = { limit: pLimit(32), mostBytes: 64 * 1024 * 1024 },
) {
  for await (const block of seenBlocks(layers, size, ignore, { ahead })) yield* block;
}

it("reads all layers side by side for who is waited for, and none any more when it has ended", async () => {
  const geometry = { virtualSize: 40 * CLUSTER, clusterSize: CLUSTER };
  let [underWay, most] = [0, 0];
  /** Each block takes as long as an answer does. */
  const slow = (cluster: number, failure?: Error) => ({
    ...{ geometry, complete: cluster === 4 },
    runBlocks: async function* () {
      for (let i = 0; i < 3; i += 1) {
        underWay += 1;
        most = Math.max(most, underWay);
        await sleep(20);
        underWay -= 1;
        if (failure && i === 1) throw failure;
        yield [{ kind: "zero", cluster: cluster + 10 * i, count: 1, digests: undefined } as const];
      }
    },
  });
  const found: number[] = [];
  for await (const piece of readAhead(
    [0, 1, 2, 3, 4].map((each) => slow(each)),
    geometry.virtualSize,
  )) {
    if (piece.state === "zero") found.push(piece.length / CLUSTER);
  }
  expect([most, underWay]).toEqual([5, 0]);
  expect(found.reduce((sum, each) => sum + each)).toBe(40);

  const hurt = [slow(0), slow(1), slow(2, new Error("damaged")), slow(3), slow(4)];
  const walk = readAhead(hurt, geometry.virtualSize);
  await expect(async () => {
    for await (const _ of walk);
  }).rejects.toThrow("damaged");
  expect(underWay).toBe(0);
  // Nor if nobody wants the rest.
  for await (const _ of readAhead(
    [0, 4].map((each) => slow(each)),
    geometry.virtualSize,
  ))
    break;
  expect(underWay).toBe(0);
});

it("reads no more at once than it may, of several disks together, and no more of any once it has ended", async () => {
  const geometry = { virtualSize: 40 * CLUSTER, clusterSize: CLUSTER };
  let [underWay, most, begun] = [0, 0, 0];
  const layer = (failure?: Error) => ({
    ...{ geometry, complete: true },
    runBlocks: async function* () {
      for (let i = 0; i < 3; i += 1) {
        begun += 1;
        underWay += 1;
        most = Math.max(most, underWay);
        await sleep(5);
        underWay -= 1;
        if (failure) throw failure;
        yield [{ kind: "zero", cluster: 10 * i, count: 1, digests: undefined } as const];
      }
    },
  });
  const layers = (count: number, top = layer()) => [top, ...Array.from({ length: count - 1 }, () => layer())];
  const walk = async (
    count: number,
    ahead: { readonly limit: ReturnType<typeof pLimit>; mostBytes: number },
  ) => {
    let end = 0;
    for await (const { offset, length } of readAhead(layers(count), geometry.virtualSize, ahead))
      end = offset + length;
    return end;
  };
  const limit = pLimit(7);
  const shared = { limit, mostBytes: 64 * 1024 * 1024 };
  const all = await Promise.all([30, 1, 20, 12].map((count) => walk(count, shared)));
  expect([all, most, underWay]).toEqual([Array(4).fill(geometry.virtualSize), 7, 0]);
  // Where there are too many layers to hold more of each, their first blocks are read ahead all the same.
  most = 0;
  expect(await walk(30, { limit: pLimit(100), mostBytes: 1024 * 1024 })).toBe(geometry.virtualSize);
  expect(most).toBe(30);

  begun = 0;
  const hurt = layers(1000, layer(new Error("damaged")));
  await expect(async () => {
    for await (const _ of readAhead(hurt, geometry.virtualSize, shared));
  }).rejects.toThrow("damaged");
  expect(begun).toBeLessThan(20);
  expect([underWay, limit.activeCount, limit.pendingCount]).toEqual([0, 0, 0]);
});

function draw(random: () => number, complete: boolean): Drawn {
  const virtualSize = 1 + Math.floor(random() * 40 * CLUSTER);
  const list: LayerRun[] = [];
  const end = Math.ceil(virtualSize / CLUSTER);
  for (let cluster = Math.floor(random() * 4); cluster < end; ) {
    const count = Math.min(end - cluster, 1 + Math.floor(random() * 4));
    const kind = random();
    if (kind < 0.4) list.push({ kind: "data", cluster, count, hostOffset: 0, digests: undefined });
    else if (kind < 0.6) list.push({ kind: "zero", cluster, count, digests: undefined });
    else {
      const dataMask = Math.floor(random() * 2 ** 32) >>> 0;
      const zeroMask = (Math.floor(random() * 2 ** 32) & ~dataMask) >>> 0;
      list.push({
        kind: "partial",
        cluster,
        count: 1,
        dataMask,
        zeroMask,
        hostOffset: 0,
        digests: undefined,
      });
    }
    cluster += (kind < 0.6 ? count : 1) + (random() < 0.5 ? 0 : Math.floor(random() * 5));
  }
  return { geometry: { virtualSize, clusterSize: CLUSTER }, complete, list };
}

/** A layer that gives its runs one by one, or in blocks. */
function seenLayer({ list, ...layer }: Drawn, inBlocks: boolean, atEnd: () => void) {
  if (!inBlocks) {
    return {
      ...layer,
      runs: async function* () {
        yield* list;
        atEnd();
      },
    };
  }
  return {
    ...layer,
    runBlocks: async function* () {
      for (let at = 0; at < list.length; at += 3) yield list.slice(at, at + 3);
      atEnd();
    },
  };
}

function drawing(layers: readonly Drawn[], size: number): string[] {
  const drawn = Array.from({ length: size }, () => "clean ");
  for (const [i, { geometry, complete, list }] of [...layers.entries()].reverse()) {
    const fill = (from: number, to: number, what: string): void => {
      for (let at = from; at < Math.min(to, size); at += 1) drawn[at] = what;
    };
    const inside = (to: number): number => Math.min(to, geometry.virtualSize);
    fill(geometry.virtualSize, size, "zero ");
    if (complete) fill(0, geometry.virtualSize, "zero ");
    for (const run of list) {
      const at = run.cluster * CLUSTER;
      if (run.kind === "partial") {
        for (const { mask, what } of [
          { mask: run.dataMask, what: `data ${i}` },
          { mask: run.zeroMask, what: "zero " },
        ]) {
          for (const s of maskStretches(mask, CLUSTER)) {
            fill(at + s.offset, inside(at + s.offset + s.length), what);
          }
        }
      } else fill(at, inside(at + run.count * CLUSTER), run.kind === "data" ? `data ${i}` : "zero ");
    }
  }
  return drawn;
}
