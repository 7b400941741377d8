/** Requests to a store, of which there are more than connections. */
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { Bucket } from "../../../src/backup/s3/bucket.js";
import { MOST_CONNECTIONS } from "../../../src/backup/s3/client.js";
import { Turns } from "../../../src/backup/s3/turns.js";
import { restoreEnvironment } from "../../support/environment.js";
import { SmallStore } from "../../support/small-store.js";

/** After it a request is given up whose connection is not there. */
const CONNECT_MS = 10_000;

it("wait for a connection behind others for longer than a connection is waited for, and do not fail", async () => {
  const before = { ...process.env };
  Object.assign(process.env, { AWS_ACCESS_KEY_ID: "ONE", AWS_SECRET_ACCESS_KEY: "one" });
  const store = await SmallStore.start();
  try {
    const address = { bucket: "b", prefix: "", endpoint: store.endpoint };
    using bucket = await Bucket.open(address, { patienceMs: 0 });
    const held: (() => void)[] = [];
    store.answer = (_, answer) => {
      const found = { "content-length": "5", etag: '"0"', "last-modified": new Date().toUTCString() };
      const end = (): void => void answer.writeHead(200, found).end();
      if (held.length < MOST_CONNECTIONS) held.push(end);
      else end();
    };
    const asked = Array.from({ length: MOST_CONNECTIONS + 20 }, (_, i) => bucket.find(`${i}`));
    const stop = new AbortController();
    const stopped = bucket.find("stopped", { signal: stop.signal });
    const all = Promise.all(asked);
    all.catch(() => undefined);
    await expect.poll(() => held.length).toBe(MOST_CONNECTIONS);
    stop.abort(new Error("enough"));
    await expect(stopped).rejects.toThrow("enough");
    await sleep(CONNECT_MS + 1_500);
    for (const end of held) end();
    expect(await all).toHaveLength(MOST_CONNECTIONS + 20);
    expect(store.seen.filter(({ url }) => url.includes("stopped"))).toEqual([]);
  } finally {
    restoreEnvironment(before);
    await store[Symbol.asyncDispose]();
  }
}, 30_000);

it("are so many at a time, in the order in which they came", async () => {
  const turns = new Turns(2);
  const order: number[] = [];
  let underWay = 0;
  const ask = (i: number): Promise<number> =>
    turns.send(async () => {
      underWay += 1;
      expect(underWay).toBeLessThanOrEqual(2);
      order.push(i);
      await sleep(1);
      underWay -= 1;
      if (i === 3) throw new Error("three");
      return i;
    }, new AbortController().signal);
  const all = await Promise.allSettled(Array.from({ length: 10 }, (_, i) => ask(i)));
  expect(all[3]).toMatchObject({ status: "rejected", reason: { message: "three" } });
  expect(all.filter(({ status }) => status === "fulfilled")).toHaveLength(9);
  expect(order).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
});
