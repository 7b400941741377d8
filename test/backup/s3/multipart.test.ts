/** Objects that are made of parts, in a store in this process: what is cut, and what must not be. */
import type { ServerResponse } from "node:http";
import type { S3Client } from "@aws-sdk/client-s3";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { Bucket } from "../../../src/backup/s3/bucket.js";
import { copyIdleMs } from "../../../src/backup/s3/client.js";
import { Multipart } from "../../../src/backup/s3/multipart.js";
import { PartObject } from "../../../src/backup/s3/part-object.js";
import { restoreEnvironment } from "../../support/environment.js";
import { SmallStore } from "../../support/small-store.js";

const MIB = 1024 * 1024;
const BEGUN = "<InitiateMultipartUploadResult><UploadId>id</UploadId></InitiateMultipartUploadResult>";
const MADE = `<CompleteMultipartUploadResult><ETag>"0-1"</ETag></CompleteMultipartUploadResult>`;
const ONE_PART = `<ListPartsResult><Part><PartNumber>1</PartNumber><Size>5</Size><ETag>"0"</ETag></Part></ListPartsResult>`;

let store: SmallStore;
let bucket: Bucket;
const before = { ...process.env };

beforeEach(async () => {
  store = await SmallStore.start();
  Object.assign(process.env, { AWS_ACCESS_KEY_ID: "ONE", AWS_SECRET_ACCESS_KEY: "one" });
  bucket = await Bucket.open({ bucket: "b", prefix: "", endpoint: store.endpoint });
});
afterEach(async () => {
  vi.restoreAllMocks();
  restoreEnvironment(before);
  bucket.close();
  await store[Symbol.asyncDispose]();
});

const asked = (method: string, what: RegExp): number =>
  store.seen.filter((each) => each.method === method && what.test(each.url)).length;

/** Begins uploads and ends them; parts, lists and completions are the tests'. */
function answerWith(rest: (what: "part" | "list" | "completion", answer: ServerResponse) => void): void {
  store.answer = ({ method, url }, answer) => {
    if (method === "POST" && url.includes("uploads")) return void answer.end(BEGUN);
    if (method === "DELETE") return void answer.writeHead(204).end();
    rest(method === "PUT" ? "part" : method === "GET" ? "list" : "completion", answer);
  };
}

it.each([
  ["none has arrived", [0], 1],
  ["one arrives late", [1, 0], 2],
  ["nobody may look", [403], 5],
  ["one stays", [1], 5],
] as const)(
  "aborts again an upload whose parts were cut, until there are none: %s",
  async (_, looks, aborts) => {
    let count = 0;
    answerWith((what, answer) => {
      if (what !== "list") return;
      const there = looks[count++] ?? looks.at(-1);
      if (there === 0) answer.writeHead(404).end("<Error><Code>NoSuchUpload</Code></Error>");
      else if (there === 1) answer.end(ONE_PART);
      else answer.writeHead(403).end("<Error><Code>AccessDenied</Code></Error>");
    });
    const stop = new AbortController();
    const multipart = new Multipart(bucket, "key", { stop: stop.signal });
    const part = expect(multipart.put(1, Buffer.from("bytes"))).rejects.toThrow("enough");
    await expect.poll(() => asked("PUT", /partNumber=1/)).toBe(1);
    stop.abort(new Error("enough"));
    await part;
    await multipart.abort();
    expect(asked("DELETE", /uploadId=id/)).toBe(aborts);
    expect(asked("GET", /uploadId=id/)).toBe(Math.min(aborts, 4));
  },
  20_000,
);

it.each([
  ["nobody may be told of its parts", "list", 10_000],
  ["somebody has given a signal", "list", 5_000],
  ["somebody has given a signal", "completion", 10_000],
] as const)(
  "gives up a silent store in time when %s, and a %s is not answered",
  async (why, silent, mostMs) => {
    answerWith((what, answer) => {
      if (what === "part" && silent === "completion") answer.writeHead(200, { etag: '"0"' }).end();
    });
    const [caller, stop] = [new AbortController(), new AbortController()];
    const multipart = new Multipart(bucket, "key", { signal: caller.signal, stop: stop.signal });
    const part = multipart.put(1, Buffer.from("bytes"));
    const ended = expect(
      silent === "list" ? part : part.then(async (each) => await multipart.complete([each])),
    ).rejects.toThrow("enough");
    const sent = silent === "list" ? () => asked("PUT", /partNumber=1/) : () => asked("POST", /uploadId/);
    await expect.poll(sent).toBe(1);
    const at = performance.now();
    (why === "somebody has given a signal" ? caller : stop).abort(new Error("enough"));
    await ended;
    await multipart.abort();
    expect(performance.now() - at).toBeLessThan(mostMs + 1_000);
    expect(asked("GET", /uploadId=id/)).toBe(silent === "list" ? 1 : 0);
  },
  40_000,
);

it("aborts an upload once if its parts were answered", async () => {
  answerWith((_, answer) => void answer.writeHead(200, { etag: '"0"' }).end());
  const multipart = new Multipart(bucket, "key", {});
  await multipart.put(1, Buffer.from("bytes"));
  await multipart.abort();
  expect(asked("DELETE", /uploadId=id/)).toBe(1);
  expect(asked("GET", /uploadId=id/)).toBe(0);
});

it.each(["the caller", "a failure"] as const)(
  "does not cut a completion when %s ends the upload",
  async (who) => {
    const [caller, failure] = [new AbortController(), new AbortController()];
    let complete: (() => void) | undefined;
    let isCut = false;
    answerWith((what, answer) => {
      if (what === "part") return void answer.writeHead(200, { etag: '"0"' }).end();
      answer.on("close", () => {
        isCut = !answer.writableEnded;
      });
      complete = () => answer.end(MADE);
    });
    const signals = { signal: caller.signal, stop: failure.signal };
    const object = new PartObject(bucket, "part", signals);
    await object.add(Buffer.from("bytes"), (send) => send());
    const moved = expect(object.moveInto(new Multipart(bucket, "whole", signals), 1)).rejects.toThrow(
      "enough",
    );
    await expect.poll(() => complete).toBeDefined();
    (who === "the caller" ? caller : failure).abort(new Error("enough"));
    // What has been cut has come to an end before another request is answered.
    await bucket.folders("");
    complete?.();
    await moved;
    expect(isCut).toBe(false);
    expect(asked("HEAD", /./)).toBe(0);
    expect(asked("POST", /whole/)).toBe(0);
  },
);

it("cuts a completion that is begun late when all is late", async () => {
  answerWith((what, answer) => {
    if (what === "part") answer.writeHead(200, { etag: '"0"' }).end();
  });
  const [caller, late] = [new AbortController(), new AbortController()];
  const multipart = new Multipart(bucket, "key", { signal: caller.signal, late: late.signal });
  const part = await multipart.put(1, Buffer.from("bytes"));
  caller.abort(new Error("enough"));
  const at = performance.now();
  const ended = expect(multipart.complete([part], {})).rejects.toThrow("enough");
  await expect.poll(() => asked("POST", /uploadId/)).toBe(1);
  late.abort(caller.signal.reason);
  await ended;
  await multipart.abort();
  expect(performance.now() - at).toBeLessThan(5_000);
  // The object may be made: the next run looks.
  expect(asked("DELETE", /uploadId/)).toBe(0);
});

it("leaves an upload after a signal that the next run goes on with, and after a failure none", async () => {
  answerWith((what, answer) => {
    if (what === "part") answer.writeHead(200, { etag: '"0"' }).end();
  });
  const caller = new AbortController();
  const multipart = new Multipart(bucket, "key", { signal: caller.signal, stays: true });
  await multipart.put(1, Buffer.from("bytes"));
  await multipart.abort();
  expect(asked("DELETE", /uploadId/)).toBe(1);
  caller.abort(new Error("enough"));
  await multipart.abort();
  expect(asked("DELETE", /uploadId/)).toBe(1);
});

it("begins no completion when the upload was ended", async () => {
  answerWith((_, answer) => void answer.writeHead(200, { etag: '"0"' }).end());
  const stop = new AbortController();
  const multipart = new Multipart(bucket, "key", { signal: stop.signal });
  const part = await multipart.put(1, Buffer.from("bytes"));
  stop.abort(new Error("enough"));
  await expect(multipart.complete([part])).rejects.toThrow("enough");
  expect(asked("POST", /uploadId/)).toBe(0);
});

it.each([
  ["a large part", 5 * 1024 * MIB, 1],
  ["a small one", 64 * MIB, 2],
])(
  "waits for the copy of %s until it is given up as silent, and for all tries no longer than promised",
  async (_, length, tries) => {
    answerWith(() => undefined);
    let now = performance.now();
    vi.spyOn(performance, "now").mockImplementation(() => now);
    const send = vi.fn(async () => {
      now += copyIdleMs(length) + 1;
      throw Object.assign(new Error("silent"), { name: "TimeoutError" });
    });
    vi.spyOn(bucket, "copier").mockResolvedValue({ send, destroy: () => undefined } as unknown as S3Client);
    const multipart = new Multipart(bucket, "key", {});
    const range = { key: "from", etag: "0", start: 0, length };
    await expect(multipart.copy(1, range)).rejects.toMatchObject({ code: "E_S3_UNREACHABLE" });
    expect(send).toHaveBeenCalledTimes(tries);
  },
);

it("tries the copy of a large part again if there was no connection", async () => {
  answerWith(() => undefined);
  const send = vi.fn(async () => {
    if (send.mock.calls.length === 2) return { CopyPartResult: { ETag: '"0"' } };
    throw Object.assign(new Error("no connection"), { name: "TimeoutError" });
  });
  vi.spyOn(bucket, "copier").mockResolvedValue({ send } as unknown as S3Client);
  const multipart = new Multipart(bucket, "key", {});
  const range = { key: "from", etag: "0", start: 0, length: 5 * 1024 * MIB };
  expect(await multipart.copy(1, range)).toEqual({ PartNumber: 1, ETag: '"0"' });
});

it("takes many requests at once for no leak of listeners", async () => {
  const warnings: Error[] = [];
  const warned = (warning: Error): void => void warnings.push(warning);
  process.on("warning", warned);
  try {
    answerWith(() => undefined);
    const [caller, stop] = [new AbortController(), new AbortController()];
    const multipart = new Multipart(bucket, "key", { signal: caller.signal, stop: stop.signal });
    const { signal } = caller;
    const parts = Array.from({ length: 20 }, (_, i) => multipart.put(i + 1, Buffer.from("bytes")));
    const others = Array.from({ length: 20 }, (_, i) => bucket.find(`${i}`, { signal }));
    await expect.poll(() => store.seen.length).toBe(41);
    caller.abort(new Error("enough"));
    for (const each of await Promise.allSettled([...parts, ...others])) {
      expect(each).toMatchObject({ status: "rejected", reason: { message: "enough" } });
    }
    expect(warnings.filter(({ name }) => name === "MaxListenersExceededWarning")).toEqual([]);
  } finally {
    process.off("warning", warned);
  }
});
