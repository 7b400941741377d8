import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { NbdClient } from "../../src/nbd/index.js";
import { CHUNK, COMMAND, COMMAND_FLAG, ERRNO, TRANSMISSION } from "../../src/nbd/wire/constants.js";
import { data, FRAGMENTED, replying, whole } from "../support/mock-replies.js";
import {
  COMMON_FLAGS,
  chunk,
  dataAt,
  errorPayload,
  extendedChunk,
  handshake,
  MockServer,
  simpleReply,
  type TransmissionRequest,
  u32,
  u64,
} from "../support/mock-server.js";
import { PieceCollector } from "../support/piece-collector.js";
import { pattern } from "./servers.js";

const SIZE = 256 * 1024;
const PAGE = 4096;

/** How replies are split into chunks and segments. */
interface Course {
  /** Where a reply is split into chunks, as fractions of its length. */
  readonly cuts: readonly number[];
  /** Which chunks are holes; used in turn. */
  readonly holes: readonly boolean[];
  readonly backwards: boolean;
  /** The sizes of the segments that are sent. */
  readonly segments: readonly number[];
}

type Mode = "simple" | "structured" | "extended";

/** Everything is data except the holes of `course`. */
function replyTo({ cookie, offset, length }: TransmissionRequest, mode: Mode, course: Course): Buffer {
  if (mode === "simple") return simpleReply(cookie, 0, pattern(offset, length));
  const frame = (type: number, payload: Buffer, done: boolean) =>
    mode === "extended"
      ? extendedChunk(cookie, offset, type, payload, done)
      : chunk(cookie, type, payload, done);
  const edges = [...new Set([0, length, ...course.cuts.map((cut) => Math.floor(cut * length))])];
  edges.sort((a, b) => a - b);
  const chunks = edges.slice(0, -1).map((start, at) => {
    const end = edges[at + 1] ?? length;
    const isHole = course.holes[at % course.holes.length] ?? false;
    if (isHole)
      return frame(CHUNK.OFFSET_HOLE, Buffer.concat([u64(offset + start), u32(end - start)]), false);
    return frame(CHUNK.OFFSET_DATA, dataAt(offset + start, pattern(offset + start, end - start)), false);
  });
  if (course.backwards) chunks.reverse();
  return Buffer.concat([...chunks, frame(CHUNK.NONE, Buffer.alloc(0), true)]);
}

const anyCourse = fc.record({
  cuts: fc.array(fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true }), { maxLength: 6 }),
  holes: fc.constantFrom([false], [true, false], [false, false, true]),
  backwards: fc.boolean(),
  segments: fc.oneof(
    fc.constant([1e9]),
    fc.array(fc.integer({ min: 40, max: 9000 }), { minLength: 1, maxLength: 8 }),
  ),
});
const anyStretch = fc
  .tuple(fc.nat(SIZE - 1), fc.oneof(fc.integer({ min: 1, max: 200 }), fc.integer({ min: 1, max: 60_000 })))
  .map(([offset, length]) => ({ offset, length: Math.min(length, SIZE - offset) }));

describe.each(["simple", "structured", "extended"] as const)("reading in pieces by %s replies", (mode) => {
  let course: Course;
  let mock: MockServer;
  let client: NbdClient;
  beforeAll(async () => {
    const facts = { protocol: mode, size: SIZE, flags: FRAGMENTED.flags };
    mock = await MockServer.start(async (peer) => {
      await handshake(peer, facts);
      while (true) {
        const request = await peer.request(mode === "extended");
        if (request.command === COMMAND.DISC) return;
        const bytes = replyTo(request, mode, course);
        for (let at = 0, count = 0; at < bytes.length; count += 1) {
          const size = course.segments[count % course.segments.length] ?? 1;
          await peer.dribble(bytes.subarray(at, at + size), size);
          at += size;
        }
      }
    });
    client = await NbdClient.connect(mock.uri);
  });
  afterAll(async () => {
    await client.close();
    await mock[Symbol.asyncDispose]();
  });

  it("delivers every byte exactly once, however replies are split and sent", async () => {
    await fc.assert(
      fc.asyncProperty(
        anyCourse,
        fc.array(anyStretch, { minLength: 1, maxLength: 4 }),
        async (next, stretches) => {
          course = next;
          for (const stretch of stretches) {
            const sink = new PieceCollector(SIZE);
            await client.readPieces([stretch], sink);
            expect(sink.fault(stretch)).toBeUndefined();
            const { offset, length } = stretch;
            const holes = sink.taken.filter(({ kind }) => kind === "zeroes");
            const expected = pattern(0, SIZE);
            for (const hole of holes) expected.fill(0, hole.offset, hole.offset + hole.length);
            const [got, wanted] = [sink.bytes, expected].map((b) => b.subarray(offset, offset + length));
            expect(got?.equals(wanted ?? Buffer.alloc(0))).toBe(true);
          }
        },
      ),
      { numRuns: 60 },
    );
  });

  it("delivers all bytes of several stretches, and of the same one twice", async () => {
    course = { cuts: [0.3], holes: [false], backwards: false, segments: [5000] };
    const stretches = [
      { offset: 512, length: 1024 },
      { offset: 100_001, length: 33_333 },
      { offset: 4096, length: 0 },
      { offset: SIZE - 4096, length: 4096 },
    ];
    const [first, second] = [new PieceCollector(SIZE), new PieceCollector(SIZE)];
    await Promise.all([client.readPieces(stretches, first), client.readPieces(stretches, second)]);
    for (const sink of [first, second]) expect(sink.fault(...stretches)).toBeUndefined();
  });

  it("delivers pieces and fills buffers, side by side", async () => {
    course = { cuts: [0.5], holes: [false], backwards: true, segments: [3000, 17] };
    const stretch = { offset: 8192, length: 50_000 };
    const sink = new PieceCollector(SIZE);
    const target = Buffer.alloc(50_000);
    await Promise.all([
      client.readPieces([stretch], sink),
      client.read(8192, target),
      client.readPieces([stretch], new PieceCollector(SIZE)),
    ]);
    expect(sink.fault(stretch)).toBeUndefined();
    expect(target.equals(pattern(8192, 50_000))).toBe(true);
  });
});

describe("reading in pieces", () => {
  it("sees pieces that end with a page", async () => {
    await using mock = await replying(whole, { size: 4 * 1024 * 1024, flags: COMMON_FLAGS });
    await using client = await NbdClient.connect(mock.uri);
    const sink = new PieceCollector(4 * 1024 * 1024);
    await client.readPieces([{ offset: 1024, length: 3 * 1024 * 1024 }], sink);
    expect(sink.taken.length).toBeGreaterThan(3);
    for (const { offset, length } of sink.taken.slice(0, -1)) expect((offset + length) % PAGE).toBe(0);
  });

  it("follows a block size of 4096 with an odd end, and delivers only what was requested", async () => {
    const size = SIZE + 512;
    const asked: [number, number][] = [];
    await using mock = await replying(
      (r) => {
        asked.push([r.offset, r.length]);
        return whole(r);
      },
      { size, flags: COMMON_FLAGS, blockSize: [4096, 4096, 65_536] },
    );
    await using client = await NbdClient.connect(mock.uri);
    const stretches = [
      { offset: 5000, length: 1 },
      { offset: 10_000, length: 200_000 },
      { offset: size - 700, length: 700 },
    ];
    const sink = new PieceCollector(size);
    await client.readPieces(stretches, sink);
    expect(sink.fault(...stretches)).toBeUndefined();
    for (const { offset, length } of stretches) {
      const got = sink.bytes.subarray(offset, offset + length);
      expect(got.equals(pattern(offset, length))).toBe(true);
    }
    for (const [offset, length] of asked) {
      expect(offset % 4096).toBe(0);
      expect(length).toBeLessThanOrEqual(65_536);
      expect(length % 4096 === 0 || offset + length === size).toBe(true);
    }
  });

  it("sends DF if it is offered, and reads in small pieces after EOVERFLOW", async () => {
    const asked: [number, number][] = [];
    await using mock = await replying(
      (r) => {
        expect(r.flags).toBe(COMMAND_FLAG.DF);
        asked.push([r.offset, r.length]);
        return r.length > 65_536 ? chunk(r.cookie, CHUNK.ERROR, errorPayload(ERRNO.EOVERFLOW)) : whole(r);
      },
      { flags: COMMON_FLAGS },
    );
    await using client = await NbdClient.connect(mock.uri);
    const stretch = { offset: 512, length: 150_016 };
    const sink = new PieceCollector(SIZE);
    await client.readPieces([stretch], sink);
    expect(sink.fault(stretch)).toBeUndefined();
    expect(asked.filter(([, length]) => length <= 65_536)).toEqual([
      [512, 65_536],
      [512 + 65_536, 65_536],
      [512 + 131_072, 150_016 - 131_072],
    ]);
  });

  it("tries only once to read unfragmented what is too large", async () => {
    await using mock = await replying((r) =>
      r.length > 65_536 ? chunk(r.cookie, CHUNK.ERROR, errorPayload(ERRNO.EOVERFLOW)) : whole(r),
    );
    await using client = await NbdClient.connect(mock.uri);
    await client.readPieces([{ offset: 0, length: 131_072 }], new PieceCollector(SIZE));
    expect(client.requests).toBe(3);
  });

  it("refuses ranges outside the export before it sends a request", async () => {
    await using mock = await replying(whole);
    await using client = await NbdClient.connect(mock.uri);
    const sink = new PieceCollector(SIZE);
    const stretches = [
      { offset: 0, length: 512 },
      { offset: 1024 * 1024, length: 1 },
    ];
    await expect(client.readPieces(stretches, sink)).rejects.toMatchObject({ code: "NBD_OUT_OF_RANGE" });
    expect([client.requests, sink.taken]).toEqual([0, []]);
  });

  it("needs no request for an empty range", async () => {
    await using mock = await replying(whole);
    await using client = await NbdClient.connect(mock.uri);
    await client.readPieces([], new PieceCollector(0));
    await client.readPieces([{ offset: 512, length: 0 }], new PieceCollector(0));
    expect(client.requests).toBe(0);
  });

  it("needs no request for an empty range in the middle of a block", async () => {
    await using mock = await replying(whole);
    await using client = await NbdClient.connect(mock.uri);
    await client.readPieces([{ offset: 100, length: 0 }], new PieceCollector(SIZE));
    expect(client.requests).toBe(0);
  });

  it("puts many small stretches into few messages", async () => {
    const arrivals: number[] = [];
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer, { flags: COMMON_FLAGS });
      peer.socket.on("data", (bytes) => arrivals.push(bytes.length));
      while (true) {
        const request = await peer.request();
        if (request.command === COMMAND.DISC) return;
        peer.send(data(request, 0, request.length, true));
      }
    });
    await using client = await NbdClient.connect(mock.uri);
    const stretches = Array.from({ length: 16 }, (_, at) => ({ offset: at * 8192, length: 512 }));
    const sink = new PieceCollector(SIZE);
    await client.readPieces(stretches, sink);
    expect(sink.fault(...stretches)).toBeUndefined();
    expect(arrivals.slice(0, 1)).toEqual([16 * 28]);
  });

  it("spreads stretches over connections", async () => {
    const used = new Set<number>();
    await using mock = await MockServer.start(async (peer, index) => {
      await handshake(peer, { flags: COMMON_FLAGS | TRANSMISSION.CAN_MULTI_CONN });
      while (true) {
        const request = await peer.request();
        if (request.command === COMMAND.DISC) return;
        used.add(index);
        peer.send(whole(request));
      }
    });
    await using client = await NbdClient.connect(mock.uri, { connections: 3 });
    await expect.poll(() => client.connections).toBe(3);
    const stretches = Array.from({ length: 30 }, (_, at) => ({ offset: at * 4096, length: 4096 }));
    const sink = new PieceCollector(SIZE);
    await client.readPieces(stretches, sink);
    expect(sink.fault(...stretches)).toBeUndefined();
    expect(used.size).toBe(3);
  });
});
