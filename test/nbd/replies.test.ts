import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ProtocolError } from "../../src/nbd/index.js";
import type { ReplySink } from "../../src/nbd/wire/chunks.js";
import { CHUNK, COMMAND, ERRNO } from "../../src/nbd/wire/constants.js";
import type { Descriptors } from "../../src/nbd/wire/descriptors.js";
import { type ReplyHandler, ReplyParser } from "../../src/nbd/wire/replies.js";
import type { Protocol } from "../../src/nbd/wire/requests.js";
import {
  chunk,
  dataAt,
  errorPayload,
  extendedChunk,
  simpleReply,
  statusPayload,
  u16,
  u32,
  u64,
  wideStatusPayload,
} from "../support/mock-server.js";
import { pattern } from "./servers.js";

/**
 * Records what the parser reports. Cookie n is a request for 4096 bytes at n * 4096: reads, and from 100 on
 * block status.
 */
class Recorder implements ReplyHandler {
  readonly events: string[] = [];
  readonly buffers = new Map<number, Buffer>();
  readonly late = new Set<number>();

  find(cookie: number): ReplySink | undefined {
    if (this.late.has(cookie)) {
      this.events.push(`${cookie} late`);
      return undefined;
    }
    const note = (text: string) => this.events.push(`${cookie} ${text}`);
    const buffer = this.buffers.get(cookie) ?? Buffer.alloc(4096, 0xee);
    this.buffers.set(cookie, buffer);
    const base = cookie * 4096;
    return {
      command: cookie < 100 ? COMMAND.READ : COMMAND.BLOCK_STATUS,
      offset: base,
      length: 4096,
      place(offset, length) {
        if (offset < base || offset + length > base + 4096)
          throw new ProtocolError("the server sent too much");
        note(`data ${offset - base}+${length}`);
        return cookie === 9 ? undefined : buffer.subarray(offset - base, offset - base + length);
      },
      hole(offset, length) {
        note(`hole ${offset - base}+${length}`);
        if (offset < base || offset + length > base + 4096)
          throw new ProtocolError("the server sent too much");
        buffer.fill(0, offset - base, offset - base + length);
      },
      status(context: number, descriptors: Descriptors) {
        const list = Array.from({ length: descriptors.count }, (_, index) => [
          descriptors.lengthAt(index),
          descriptors.flagsAt(index),
        ]);
        note(`status ${context} ${JSON.stringify(list)}`);
      },
      fail: (error, message, offset) => note(`error ${error} ${message} ${offset ?? ""}`),
    };
  }

  finished(cookie: number): void {
    this.events.push(`${cookie} finished`);
  }
}

/** Feeds `bytes` in pieces like a socket: never more than the parser has room for. */
function feed(parser: ReplyParser, bytes: Uint8Array, pieceSize: (at: number) => number): void {
  for (let at = 0; at < bytes.length; ) {
    const target = parser.target();
    expect(target.length).toBeGreaterThan(0);
    const count = Math.min(target.length, bytes.length - at, Math.max(1, pieceSize(at)));
    target.set(bytes.subarray(at, at + count));
    at += count;
    parser.received(count);
  }
}

function parse(
  protocol: Protocol,
  bytes: Uint8Array,
  pieceSize: (at: number) => number = () => 1e9,
): Recorder {
  const recorder = new Recorder();
  recorder.late.add(101);
  feed(new ReplyParser(protocol, recorder), bytes, pieceSize);
  return recorder;
}

const structured = Buffer.concat([
  chunk(1, CHUNK.OFFSET_DATA, dataAt(4096, pattern(4096, 4096))),
  chunk(2, CHUNK.OFFSET_HOLE, Buffer.concat([u64(2 * 4096 + 8), u32(8)]), false),
  chunk(100, CHUNK.BLOCK_STATUS, statusPayload(5, [1024, 0], [8192, 3]), false),
  chunk(2, CHUNK.OFFSET_DATA, dataAt(2 * 4096, pattern(2 * 4096, 8)), false),
  chunk(9, CHUNK.OFFSET_DATA, dataAt(9 * 4096, pattern(0, 300))),
  chunk(101, CHUNK.BLOCK_STATUS, statusPayload(6, [1024, 0])),
  chunk(2, CHUNK.NONE),
  chunk(3, CHUNK.ERROR, errorPayload(ERRNO.EIO, "kaputt"), false),
  chunk(3, CHUNK.ERROR_OFFSET, Buffer.concat([errorPayload(ERRNO.ENOMEM), u64(3 * 4096 + 1)])),
  chunk(4, 0x8123, pattern(0, 10)),
  chunk(5, 0x8124),
  simpleReply(100, ERRNO.EINVAL),
]);
const structuredEvents = [
  "1 data 0+4096",
  "1 finished",
  "2 hole 8+8",
  "100 status 5 [[1024,0],[8192,3]]",
  "2 data 0+8",
  "9 data 0+300",
  "9 finished",
  "101 late",
  "101 finished",
  "2 finished",
  `3 error ${ERRNO.EIO} kaputt `,
  `3 error ${ERRNO.ENOMEM}  ${3 * 4096 + 1}`,
  "3 finished",
  "4 error 0  ",
  "4 finished",
  "5 error 0  ",
  "5 finished",
  `100 error ${ERRNO.EINVAL}  `,
  "100 finished",
];
const simple = Buffer.concat([
  simpleReply(7, 0, pattern(0, 4096)),
  simpleReply(8, ERRNO.EIO),
  simpleReply(9, 0, pattern(0, 4096)),
  simpleReply(6, 0, pattern(8, 4096)),
]);
const simpleEvents = [
  ...["7 data 0+4096", "7 finished", `8 error ${ERRNO.EIO}  `, "8 finished"],
  ...["9 data 0+4096", "9 finished", "6 data 0+4096", "6 finished"],
];
const extended = Buffer.concat([
  extendedChunk(1, 4096, CHUNK.OFFSET_DATA, dataAt(4096, pattern(4096, 4096))),
  extendedChunk(100, 409_600, CHUNK.BLOCK_STATUS_EXT, wideStatusPayload(5, [2 ** 40, 2 ** 33])),
  extendedChunk(3, 3 * 4096, CHUNK.ERROR, errorPayload(ERRNO.EIO)),
]);
const extendedEvents = [
  ...["1 data 0+4096", "1 finished"],
  ...["100 status 5 [[1099511627776,8589934592]]", "100 finished", `3 error ${ERRNO.EIO}  `, "3 finished"],
];

const streams: readonly [Protocol, Buffer, readonly string[]][] = [
  ["structured", structured, structuredEvents],
  ["simple", simple, simpleEvents],
  ["extended", extended, extendedEvents],
];

describe.each(streams)("a stream of %s replies", (protocol, bytes, events) => {
  it("is understood in one piece", () => {
    expect(parse(protocol, bytes).events).toEqual(events);
  });

  it("is understood byte by byte", () => {
    expect(parse(protocol, bytes, () => 1).events).toEqual(events);
  });

  it("is understood when it is split in two anywhere", () => {
    for (let split = 1; split < bytes.length; split++) {
      const recorder = parse(protocol, bytes, (at) => (at < split ? split - at : bytes.length));
      expect(recorder.events).toEqual(events);
    }
  });

  it("is understood in pieces of any sizes", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1 }), (sizes) => {
        let index = 0;
        const recorder = parse(protocol, bytes, () => sizes[index++ % sizes.length] ?? 1);
        expect(recorder.events).toEqual(events);
      }),
    );
  });

  it("is always parsed or refused, even with changed bytes", () => {
    const changes = fc.array(fc.tuple(fc.nat(bytes.length - 1), fc.integer({ min: 0, max: 255 })), {
      minLength: 1,
      maxLength: 8,
    });
    fc.assert(
      fc.property(changes, (list) => {
        const changed = Buffer.from(bytes);
        for (const [at, value] of list) changed[at] = value;
        try {
          parse(protocol, changed, () => 100);
        } catch (error) {
          expect(error).toMatchObject({ name: "ProtocolError" });
        }
      }),
      { numRuns: 1000 },
    );
  });
});

describe("payload", () => {
  it("lands in the reader's buffer, and the parser returns the rest of it as target", () => {
    const recorder = new Recorder();
    const parser = new ReplyParser("structured", recorder);
    const reply = chunk(1, CHUNK.OFFSET_DATA, dataAt(4096, pattern(4096, 4096)));
    feed(parser, reply.subarray(0, 128), () => 128);
    const target = parser.target();
    expect(target.buffer).toBe(recorder.buffers.get(1)?.buffer);
    expect(target.length).toBe(4096 - 100);
    expect(parser.receivingFor).toMatchObject({ offset: 4096, length: 4096 });
    feed(parser, reply.subarray(128), () => 1000);
    expect(parser.receivingFor).toBeUndefined();
    expect(recorder.buffers.get(1)?.equals(pattern(4096, 4096))).toBe(true);
  });

  it("is skipped without touching a buffer if nobody wants it", () => {
    const recorder = parse("simple", simple, () => 1000);
    expect(recorder.buffers.get(9)?.equals(Buffer.alloc(4096, 0xee))).toBe(true);
    expect(recorder.buffers.get(6)?.equals(pattern(8, 4096))).toBe(true);
  });
});

describe("the parser refuses", () => {
  const header = (type: number, length: number, done = 1, cookie = 1) =>
    Buffer.concat([u32(0x668e33ef), u16(done), u16(type), u64(cookie), u32(length)]);

  it.each<[string, Protocol, Buffer]>([
    ["garbage", "structured", Buffer.from("HTTP/1.1 400 Bad Request\r\n")],
    ["a structured chunk without agreement", "simple", header(CHUNK.NONE, 0)],
    ["a simple reply to extended requests", "extended", Buffer.concat([simpleReply(1), Buffer.alloc(16)])],
    ["a simple reply to a structured read", "structured", simpleReply(1, 0, Buffer.alloc(4096))],
    ["a simple error to a structured read", "structured", simpleReply(1, ERRNO.EIO)],
    ["a simple reply to a request that is over", "structured", simpleReply(101)],
    ["an empty chunk that isn't empty", "structured", header(CHUNK.NONE, 1)],
    ["an empty chunk that isn't the last", "structured", header(CHUNK.NONE, 0, 0)],
    ["a data chunk without data", "structured", header(CHUNK.OFFSET_DATA, 8)],
    ["a data chunk shorter than its offset", "structured", header(CHUNK.OFFSET_DATA, 7)],
    ["a data chunk longer than the request", "structured", header(CHUNK.OFFSET_DATA, 8 + 4097)],
    ["a data chunk of four gigabytes", "structured", header(CHUNK.OFFSET_DATA, 0xffffffff)],
    ["a data chunk in reply to a block status", "structured", header(CHUNK.OFFSET_DATA, 100, 1, 100)],
    ["a hole of the wrong length", "structured", header(CHUNK.OFFSET_HOLE, 13)],
    ["a hole of zero length", "structured", chunk(1, CHUNK.OFFSET_HOLE, Buffer.concat([u64(4096), u32(0)]))],
    ["a block status in reply to a read", "structured", header(CHUNK.BLOCK_STATUS, 12)],
    ["a block status without extents", "structured", header(CHUNK.BLOCK_STATUS, 4, 1, 100)],
    ["a block status with half an extent", "structured", header(CHUNK.BLOCK_STATUS, 16, 1, 100)],
    ["a block status of four gigabytes", "structured", header(CHUNK.BLOCK_STATUS, 0xfffffffc, 1, 100)],
    ["64-bit extents without agreement", "structured", header(CHUNK.BLOCK_STATUS_EXT, 24, 1, 100)],
    ["a late chunk that is too long to skip", "structured", header(CHUNK.BLOCK_STATUS, 0xfffffffc, 1, 101)],
    ["an unknown chunk that is no error", "structured", header(77, 0)],
    ["an error chunk that is too short", "structured", header(CHUNK.ERROR, 5)],
    ["an error chunk without anything", "structured", header(CHUNK.ERROR, 0)],
    ["an error with an offset that is too short", "structured", header(CHUNK.ERROR_OFFSET, 13)],
    ["an error chunk that is too long", "structured", header(CHUNK.ERROR, 8193)],
    ["an unknown error that is too long", "structured", header(0xffff, 8193)],
    ["an error without an error", "structured", chunk(1, CHUNK.ERROR, errorPayload(0))],
    [
      "a message longer than its chunk",
      "structured",
      chunk(1, CHUNK.ERROR, Buffer.concat([u32(5), u16(9), u32(0)])),
    ],
    [
      "a message of more than 4096 bytes",
      "structured",
      chunk(1, CHUNK.ERROR, errorPayload(5, "x".repeat(4097))),
    ],
    ["a cookie beyond 2^53", "structured", simpleReply(0).fill(0xff, 8, 16)],
    [
      "an extended chunk of 2^63 bytes",
      "extended",
      Buffer.concat([u32(0x6e8a278c), u16(1), u16(1), u64(1), u64(4096), u64(2n ** 63n)]),
    ],
  ])("%s", (_title, protocol, bytes) => {
    expect(() => parse(protocol, bytes)).toThrow(
      expect.objectContaining({ name: "ProtocolError", message: expect.stringMatching(/^the server sent/) }),
    );
  });
});
