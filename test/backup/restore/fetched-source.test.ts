import { once } from "node:events";
import { afterEach, beforeEach, expect, it } from "vitest";
import { closeAll } from "../../../src/backup/base/in-parallel.js";
import { findChain, openChain } from "../../../src/backup/chain/chain.js";
import { ChainSource } from "../../../src/backup/chain/chain-source.js";
import { failOnDamage, type Layer } from "../../../src/backup/chain/layer.js";
import { openPlace, type RemoteFile } from "../../../src/backup/image/readable-file.js";
import { FetchedSource } from "../../../src/backup/restore/fetched-source.js";
import { collect } from "../../support/collect.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { PieceCollector } from "../../support/piece-collector.js";

const CLUSTER = 64 * 1024;
const SIZE = 20 * CLUSTER;

let chain: MemoryChain;
let layers: Layer[];
/** By layer, the increment first: what happens before an answer. */
let ask: ((signal: AbortSignal) => Promise<void>)[];
beforeEach(async () => {
  ask = [];
  chain = await MemoryChain.start(SIZE);
  chain.disk.write(0, Buffer.alloc(SIZE, 1));
  await chain.take();
  chain.disk.write(10 * CLUSTER, Buffer.alloc(CLUSTER, 2));
  const { manifest } = await chain.take();
  const links = await findChain(chain.repository, MemoryChain.domain, manifest, "vda");
  layers = await openChain(chain.repository, MemoryChain.domain, links);
  for (const [i, layer] of layers.entries()) moveAway(layer, async (signal) => await ask[i]?.(signal));
});
afterEach(async () => {
  await closeAll(...layers, { close: () => chain[Symbol.asyncDispose]() });
});

/** From here on the layer's image is elsewhere. */
function moveAway(layer: Layer, before: (signal: AbortSignal) => Promise<void>): void {
  const { path } = layer.stored;
  const remote: RemoteFile = {
    path,
    open: async ({ signal = new AbortController().signal } = {}) => {
      const file = await openPlace(path);
      return {
        path,
        size: () => file.size(),
        read: (target, position) => file.read(target, position),
        fill: async (target, position, end) => {
          await before(signal);
          await file.fill(target, position, end);
        },
        close: () => file.close(),
      };
    },
  };
  Object.assign(layer, { stored: { ...layer.stored, remote } });
}

async function readAll(into: PieceCollector): Promise<void> {
  const source = new ChainSource(layers, { virtualSize: SIZE, clusterSize: CLUSTER }, failOnDamage);
  await collect(source.extents());
  await using fetched = new FetchedSource(source, layers, { segmentBytes: SIZE });
  const { signal } = new AbortController();
  await fetched.readPieces([{ offset: 0, length: SIZE }], into, { signal });
}

it("reads each byte once from the layer that the guest sees", async () => {
  const into = new PieceCollector(SIZE);
  await readAll(into);
  expect(into.fault({ offset: 0, length: SIZE })).toBeUndefined();
  expect(into.bytes.equals(await chain.contentOf(chain.points.at(-1)?.id ?? ""))).toBe(true);
});

it("ends what is under way when a request fails, and tells the reason of that one", async () => {
  let isAsked: () => void = () => undefined;
  const asked = new Promise<void>((resolve) => {
    isAsked = resolve;
  });
  ask[0] = async () => {
    await asked;
    throw new Error("the store is gone");
  };
  // It answers as late as the store may be waited for.
  ask[1] = async (signal) => {
    isAsked();
    await once(signal, "abort");
    throw new Error("given up");
  };
  await expect(readAll(new PieceCollector(SIZE))).rejects.toThrow("the store is gone");
});
