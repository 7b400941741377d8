/** Requests for bytes of an object that are made once and repeated, to a store in this process. */
import type { ServerResponse } from "node:http";
import { buffer } from "node:stream/consumers";
import { S3Client, type S3ClientConfig } from "@aws-sdk/client-s3";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { Bucket } from "../../../src/backup/s3/bucket.js";
import { patiently } from "../../../src/backup/s3/patience.js";
import { PreparedGets } from "../../../src/backup/s3/prepared-gets.js";
import { restoreEnvironment } from "../../support/environment.js";
import { SmallStore } from "../../support/small-store.js";

const BYTES = Buffer.from("0123456789");
/** Of whatever the store has, with the quotation marks. */
const ETAG = '"0"';

let store: SmallStore;
const clients: S3Client[] = [];
const before = { ...process.env };

beforeEach(async () => {
  process.env["AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED"] = "true";
  store = await SmallStore.start();
  store.answer = ({ headers }, answer) => sendBytes(answer, headers.range);
});
afterEach(async () => {
  vi.restoreAllMocks();
  restoreEnvironment(before);
  for (const client of clients.splice(0)) client.destroy();
  await store[Symbol.asyncDispose]();
});

/** @returns the bytes that were asked for */
function sendBytes(answer: ServerResponse, range: string | undefined): void {
  const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(range ?? "") ?? [];
  const bytes = BYTES.subarray(Number(first), Number(last) + 1);
  answer.writeHead(206, {
    etag: ETAG,
    "content-length": bytes.length,
    "content-range": `bytes ${first}-${last}/${BYTES.length}`,
  });
  answer.end(bytes);
}

/** What reads bytes by one client, and how often that one made a request. */
function reader(credentials: S3ClientConfig["credentials"] = { accessKeyId: "ONE", secretAccessKey: "one" }) {
  const { endpoint } = store;
  const client = new S3Client({
    ...{ endpoint, region: "us-east-1", forcePathStyle: true, maxAttempts: 1 },
    credentials: credentials as NonNullable<S3ClientConfig["credentials"]>,
  });
  clients.push(client);
  const made = vi.spyOn(client, "send");
  const gets = new PreparedGets(client);
  const read = async (at: number, Key = "key"): Promise<string> => {
    const asked = { Bucket: "b", Key, IfMatch: undefined, Range: `bytes=${at}-${at}` };
    const { body } = await gets.send(asked, new AbortController().signal);
    return (await buffer(body)).toString();
  };
  return { client, read, made: () => made.mock.calls.length };
}

it.each([408, 429, 500, 502, 503, 504])(
  "waits before it asks again a store that answers %i",
  async (status) => {
    const { read } = reader();
    await read(9);
    const refused = new Set<string | undefined>();
    store.answer = ({ headers: { range } }, answer) => {
      if (refused.has(range)) return sendBytes(answer, range);
      refused.add(range);
      answer.writeHead(status);
      answer.end("<Error><Code>SlowDown</Code></Error>");
    };
    store.seen.length = 0;
    const reads = Array.from({ length: 6 }, (_, at) => patiently(() => read(at), { patienceMs: 10_000 }));
    expect(await Promise.all(reads)).toEqual(["0", "1", "2", "3", "4", "5"]);
    expect(store.seen).toHaveLength(12);
    for (let at = 0; at < 6; at += 1) {
      const [first, second] = store.seen.filter(({ headers }) => headers.range === `bytes=${at}-${at}`);
      // Half of the first pause at least.
      expect((second?.at ?? 0) - (first?.at ?? 0)).toBeGreaterThanOrEqual(45);
    }
  },
);

it("signs each request with the credentials of now, and sends no token of earlier ones", async () => {
  // The SDK asks for those again that end soon.
  const soon = () => ({ secretAccessKey: "secret", expiration: new Date(Date.now() + 60_000) });
  const all = [
    { accessKeyId: "FIRST", sessionToken: "first token" },
    { accessKeyId: "SECOND", sessionToken: "second token" },
    { accessKeyId: "THIRD" },
  ];
  let now = all[0];
  const { read, made } = reader(async () => ({ accessKeyId: "", ...now, ...soon() }));
  for (const each of all) {
    now = each;
    expect(await read(5)).toBe("5");
  }
  const sent = store.seen.map(({ headers }) => ({
    accessKeyId: /Credential=([A-Z]+)\//.exec(headers.authorization ?? "")?.[1],
    sessionToken: headers["x-amz-security-token"],
  }));
  expect(sent).toEqual(all.map((each) => ({ sessionToken: undefined, ...each })));
  expect(made()).toBe(1);
});

it("leaves it to the SDK to sign for S3 Express, which has credentials of a session", async () => {
  const { client, read, made } = reader();
  client.middlewareStack.add(
    (next, context) => async (args) => {
      const session = { accessKeyId: "SESSION", secretAccessKey: "session", sessionToken: "token" };
      Object.assign(context, { s3ExpressIdentity: session });
      return await next(args);
    },
    { step: "build" },
  );
  for (const at of [1, 2]) expect(await read(at)).toBe(`${at}`);
  for (const { headers } of store.seen) expect(headers.authorization).toContain("Credential=SESSION/");
  expect(made()).toBe(2);
});

it("has the SDK make a request anew after half a minute", async () => {
  const { read, made } = reader();
  const begun = performance.now();
  const clock = vi.spyOn(performance, "now");
  for (const [after, times] of [
    [0, 1],
    [29_000, 1],
    [31_000, 2],
    [60_000, 2],
  ] as const) {
    clock.mockReturnValue(begun + after);
    expect(await read(3)).toBe("3");
    expect(made()).toBe(times);
  }
});

it("knows the requests of a thousand objects at most", async () => {
  const { read, made } = reader();
  for (let each = 0; each < 1000; each += 1) await read(1, `key ${each}`);
  await read(2, "key 0");
  expect(made()).toBe(1000);
  await read(1, "one more");
  await read(2, "one more");
  expect(made()).toBe(1001);
  await read(2, "key 0");
  expect(made()).toBe(1002);
}, 60_000);

async function opened(): Promise<Bucket> {
  Object.assign(process.env, { AWS_ACCESS_KEY_ID: "ONE", AWS_SECRET_ACCESS_KEY: "one" });
  return await Bucket.open({ bucket: "b", prefix: "", endpoint: store.endpoint });
}

it.each(["no answer", "half of the bytes"] as const)(
  "ends a repeated request of which there is %s",
  async (how) => {
    using bucket = await opened();
    const target = Buffer.alloc(BYTES.length);
    await bucket.readRange("key", target, 0, { etag: "0" });
    expect(target.equals(BYTES)).toBe(true);
    const made = vi.spyOn(bucket.client, "send");
    store.seen.length = 0;
    let hasHalf = false;
    store.answer = (_, answer) => {
      if (how === "no answer") return;
      answer.writeHead(206, { etag: ETAG, "content-length": 10, "content-range": "bytes 0-9/10" });
      answer.write(BYTES.subarray(0, 5), () => {
        hasHalf = true;
      });
    };
    const stop = new AbortController();
    target.fill(0);
    const read = bucket.readRange("key", target, 0, { etag: "0", signal: stop.signal });
    const ended = expect(read).rejects.toThrow("enough");
    await expect.poll(() => store.seen.length).toBe(1);
    if (how !== "no answer") {
      await expect.poll(() => hasHalf).toBe(true);
      await expect.poll(() => target.subarray(0, 5).equals(BYTES.subarray(0, 5))).toBe(true);
    }
    stop.abort(new Error("enough"));
    await ended;
    expect(store.seen).toHaveLength(1);
    expect(made).not.toHaveBeenCalled();
  },
);

it("repeats its own request when the bytes have ended too early", async () => {
  using bucket = await opened();
  const target = Buffer.alloc(BYTES.length);
  await bucket.readRange("key", target, 0, { etag: "0" });
  const made = vi.spyOn(bucket.client, "send");
  let isFirst = true;
  store.answer = ({ headers }, answer) => {
    if (!isFirst) return sendBytes(answer, headers.range);
    isFirst = false;
    answer.writeHead(206, { etag: ETAG, "content-length": 10, "content-range": "bytes 0-9/10" });
    answer.write(BYTES.subarray(0, 5), () => setTimeout(() => answer.destroy(), 50));
  };
  target.fill(0);
  await bucket.readRange("key", target, 0, { etag: "0" });
  expect(target.equals(BYTES)).toBe(true);
  expect(store.seen).toHaveLength(3);
  expect(made).not.toHaveBeenCalled();
});
