import { expect } from "vitest";
import { CHUNK } from "../../src/nbd/wire/constants.js";
import { data, end, hole, type Reply, whole } from "./mock-replies.js";
import { chunk, type ExportFacts, errorPayload, statusPayload, u32, u64 } from "./mock-server.js";

/**
 * What no server may reply to a read of 4 KiB at 8 KiB, however the client wants its bytes: what is wrong, the
 * reply, and the facts of the export; default: one whose replies may come in fragments.
 */
export const WRONG_REPLIES: readonly [what: string, reply: Reply, facts?: ExportFacts][] = [
  ["a gap in the middle", (r) => Buffer.concat([data(r, 0, 1024), data(r, 1536, 4096), end(r)])],
  ["a gap at the start", (r) => Buffer.concat([data(r, 1, 4096), end(r)])],
  ["a gap at the end", (r) => Buffer.concat([data(r, 0, 4095), end(r)])],
  ["nothing at all", (r) => end(r)],
  ["chunks that overlap", (r) => Buffer.concat([data(r, 0, 2048), data(r, 2047, 4096), end(r)])],
  ["the same half twice", (r) => Buffer.concat([data(r, 0, 2048), data(r, 0, 2048), end(r)])],
  ["a hole over data", (r) => Buffer.concat([data(r, 0, 4096), hole(r, 512, 1024), end(r)])],
  ["data over a hole", (r) => Buffer.concat([hole(r, 0, 4096), data(r, 512, 1024), end(r)])],
  ["data before its start", (r) => data({ ...r, offset: r.offset - 1 }, 0, 4096, true)],
  ["data behind its end", (r) => data(r, 1, 4097, true)],
  ["more data than was asked for", (r) => data(r, 0, 4097, true)],
  ["a hole behind its end", (r) => hole(r, 0, 4097, true)],
  [
    "an offset of 2^64 - 1",
    (r) => chunk(r.cookie, CHUNK.OFFSET_DATA, Buffer.concat([u64(2n ** 64n - 1n), Buffer.alloc(8)])),
  ],
  ["two chunks under DF", (r) => Buffer.concat([data(r, 0, 2048), data(r, 2048, 4096, true)]), {}],
  ["a cookie that only a block status would have", (r) => whole({ ...r, cookie: r.cookie + 1 })],
  ["a cookie that nobody used", (r) => whole({ ...r, cookie: r.cookie + 2 })],
  ["a block status", (r) => chunk(r.cookie, CHUNK.BLOCK_STATUS, statusPayload(1, [4096, 0]))],
  [
    "an error outside its range",
    (r) => chunk(r.cookie, CHUNK.ERROR_OFFSET, Buffer.concat([errorPayload(5), u64(r.offset + 4096)])),
  ],
  [
    "data outside its range after an error",
    (r) => Buffer.concat([chunk(r.cookie, CHUNK.ERROR, errorPayload(5), false), data(r, 4000, 5000), end(r)]),
  ],
  [
    "a second reply",
    (r) =>
      Buffer.concat([chunk(r.cookie, CHUNK.ERROR, errorPayload(5), false), data(r, 0, 10), data(r, 5, 10)]),
  ],
  [
    "errors without end",
    (r) => Buffer.concat(new Array<Buffer>(100).fill(chunk(r.cookie, CHUNK.ERROR, errorPayload(5), false))),
  ],
  ["garbage", () => Buffer.alloc(1000, "garbage")],
  ["a request instead of a reply", () => Buffer.concat([u32(0x25609513), Buffer.alloc(24)])],
];

/** What a client says of each. */
export const WRONG = {
  name: "ProtocolError",
  code: expect.stringMatching(/^NBD_(PROTOCOL|NUMBER_TOO_LARGE)$/),
  message: expect.stringMatching(/^the server sent/),
};
