/** How a connection to a store is left after a request, as a store in this process sees it. */
import { afterEach, beforeEach, expect, it } from "vitest";
import { Bucket } from "../../../src/backup/s3/bucket.js";
import { RequestHandler } from "../../../src/backup/s3/request-handler.js";
import { restoreEnvironment } from "../../support/environment.js";
import { SmallStore } from "../../support/small-store.js";

const KIB = 1024;
const before = { ...process.env };
let store: SmallStore;
let bucket: Bucket;

beforeEach(async () => {
  Object.assign(process.env, { AWS_ACCESS_KEY_ID: "AKID", AWS_SECRET_ACCESS_KEY: "secret" });
  store = await SmallStore.start();
  store.answer = ({ method, headers: { range = "" } }, answer) => {
    if (method === "HEAD") {
      answer.setHeaders(
        new Map([
          ["content-length", "1"],
          ["last-modified", new Date().toUTCString()],
        ]),
      );
    }
    const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(range) ?? [];
    const bytes = Buffer.alloc(range === "" ? 1 : Number(last) - Number(first) + 1);
    if (range !== "") answer.writeHead(206, { etag: '"1"', "content-range": `${range.replace("=", " ")}/9` });
    else answer.setHeader("etag", '"1"');
    answer.end(bytes);
  };
  bucket = await Bucket.open({ bucket: "backups", prefix: "", endpoint: store.endpoint });
});
afterEach(async () => {
  bucket.close();
  await store[Symbol.asyncDispose]();
  restoreEnvironment(before);
});

/** Of the last request. */
const connection = (): string | undefined => store.seen.at(-1)?.headers.connection;

it("has the store end the connection of a small answer, however its request is made", async () => {
  await bucket.get("small", 10);
  expect(connection()).toBe("close");
  await bucket.put("small", Buffer.alloc(10));
  expect(connection()).toBe("close");
  for (let reads = 0; reads < 3; reads += 1) {
    await bucket.readRange("object", Buffer.alloc(4 * KIB), 0, { etag: "1" });
    expect(connection()).toBe("close");
  }
});

it("keeps the connection of what is large either way, and of an answer without a body", async () => {
  for (let reads = 0; reads < 3; reads += 1) {
    await bucket.readRange("object", Buffer.alloc(64 * KIB), 0, { etag: "1" });
    expect(connection()).toBe("keep-alive");
    // Small and large ones in turn: they are made of the same request.
    await bucket.readRange("object", Buffer.alloc(KIB), 0, { etag: "1" });
    expect(connection()).toBe("close");
  }
  await bucket.put("large", Buffer.alloc(5 * KIB));
  expect(connection()).toBe("keep-alive");
  await bucket.find("object");
  expect(connection()).toBe("keep-alive");
});

it("keeps each connection with TLS", async () => {
  const handler = new RequestHandler({ httpsAgent: { maxSockets: 1 } });
  const request = {
    protocol: "https:",
    hostname: "127.0.0.1",
    port: 1,
    method: "GET",
    path: "/",
    headers: {},
  };
  await expect(handler.handle(request as never)).rejects.toMatchObject({ code: "ECONNREFUSED" });
  expect(request.headers).toEqual({});
});
