import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { ReplySink } from "../../src/nbd/wire/chunks.js";
import { CHUNK, COMMAND, ERRNO } from "../../src/nbd/wire/constants.js";
import { type ReplyHandler, ReplyParser } from "../../src/nbd/wire/replies.js";
import type { Protocol } from "../../src/nbd/wire/requests.js";
import { chunk, dataAt, errorPayload, extendedChunk, simpleReply } from "../support/mock-server.js";
import { pattern } from "./servers.js";

const PAGE = 4096;

interface Read {
  readonly offset: number;
  readonly length: number;
}

interface Piece {
  readonly cookie: number;
  readonly offset: number;
  readonly bytes: Buffer;
}

/**
 * Handles each read by its cookie: odd ones fill a buffer, even ones are taken in pieces, those from 100 on
 * are unwanted.
 */
class Takers implements ReplyHandler {
  readonly pieces: Piece[] = [];
  readonly filled = new Map<number, Buffer>();
  readonly events: string[] = [];
  readonly #reads: ReadonlyMap<number, Read>;

  constructor(reads: ReadonlyMap<number, Read>) {
    this.#reads = reads;
  }

  find(cookie: number): ReplySink | undefined {
    const read = this.#reads.get(cookie);
    if (read === undefined) return undefined;
    return {
      command: COMMAND.READ,
      ...read,
      place: (offset, length) => {
        if (cookie >= 100) return undefined;
        if (cookie % 2 === 1) {
          const buffer = this.filled.get(cookie) ?? Buffer.alloc(read.length, 0xee);
          this.filled.set(cookie, buffer);
          return buffer.subarray(offset - read.offset, offset - read.offset + length);
        }
        let at = offset;
        return {
          take: (piece) => {
            this.pieces.push({ cookie, offset: at, bytes: Buffer.from(piece) });
            at += piece.length;
          },
        };
      },
      hole: (offset, length) => this.events.push(`${cookie} hole ${offset}+${length}`),
      status: () => this.events.push(`${cookie} status`),
      fail: (error) => this.events.push(`${cookie} error ${error}`),
    };
  }

  finished(cookie: number): void {
    this.events.push(`${cookie} finished`);
  }
}

function feed(parser: ReplyParser, bytes: Uint8Array, sizes: readonly number[]): number {
  let calls = 0;
  for (let at = 0; at < bytes.length; calls += 1) {
    const target = parser.target();
    // Not by `expect`, which costs more than the parser.
    if (target.length === 0) throw new Error(`the parser takes nothing more at byte ${at}`);
    const count = Math.min(target.length, bytes.length - at, sizes[calls % sizes.length] ?? 1);
    target.set(bytes.subarray(at, at + count));
    at += count;
    parser.received(count);
  }
  return calls;
}

function encode(protocol: Protocol, cookie: number, { offset, length }: Read): Buffer {
  const bytes = pattern(offset, length);
  switch (protocol) {
    case "simple":
      return simpleReply(cookie, 0, bytes);
    case "structured":
      return chunk(cookie, CHUNK.OFFSET_DATA, dataAt(offset, bytes));
    case "extended":
      return extendedChunk(cookie, offset, CHUNK.OFFSET_DATA, dataAt(offset, bytes));
    default:
      return protocol satisfies never;
  }
}

const sizes = fc.array(
  fc.oneof(fc.integer({ min: 1, max: 64 }), fc.integer({ min: 1, max: 300_000 }), fc.constant(PAGE)),
  { minLength: 1, maxLength: 20 },
);
const reads = fc.array(
  fc.record({
    cookie: fc.constantFrom(0, 1, 100),
    offset: fc.oneof(fc.nat(20_000), fc.constantFrom(0, PAGE, 2 ** 40 + 511)),
    length: fc.oneof(fc.integer({ min: 1, max: 20_000 }), fc.constantFrom(PAGE, 65_536, 600_000)),
  }),
  { minLength: 1, maxLength: 6 },
);

describe.each(["simple", "structured", "extended"] as const)("%s replies taken in pieces", (protocol) => {
  it("arrive complete and in order however they are split, in pieces that end with a page", () => {
    fc.assert(
      fc.property(reads, sizes, (wanted, split) => {
        const table = new Map(wanted.map(({ cookie, ...read }, at) => [cookie + 2 * at, read] as const));
        const takers = new Takers(table);
        const parser = new ReplyParser(protocol, takers);
        parser.expectLargeReads();
        feed(
          parser,
          Buffer.concat([...table].map(([cookie, read]) => encode(protocol, cookie, read))),
          split,
        );
        expect(takers.events).toEqual([...table.keys()].map((cookie) => `${cookie} finished`));
        for (const [cookie, { offset, length }] of table) {
          if (cookie >= 100) continue;
          if (cookie % 2 === 1) {
            expect(takers.filled.get(cookie)?.equals(pattern(offset, length))).toBe(true);
            continue;
          }
          const pieces = takers.pieces.filter((piece) => piece.cookie === cookie);
          expect(Buffer.concat(pieces.map(({ bytes }) => bytes)).equals(pattern(offset, length))).toBe(true);
          for (const piece of pieces.slice(0, -1)) {
            expect((piece.offset + piece.bytes.length) % PAGE).toBe(0);
          }
          for (const piece of pieces) expect(piece.bytes.length).toBeGreaterThan(0);
        }
      }),
      { numRuns: 150 },
    );
  });

  it("arrive complete byte by byte", () => {
    const table = new Map([
      [0, { offset: 4000, length: 65_637 }],
      [2, { offset: 8192, length: 1 }],
      [4, { offset: 1, length: 4095 }],
      [6, { offset: 4000, length: 65_536 }],
    ]);
    const takers = new Takers(table);
    const parser = new ReplyParser(protocol, takers);
    parser.expectLargeReads();
    feed(parser, Buffer.concat([...table].map(([cookie, read]) => encode(protocol, cookie, read))), [1]);
    // A large one page by page, small ones whole.
    expect(takers.pieces.map(({ offset, bytes }) => [offset, bytes.length])).toEqual([
      [4000, 96],
      ...Array.from({ length: 16 }, (_, index) => [4096 * (index + 1), 4096]),
      [69_632, 5],
      [8192, 1],
      [1, 4095],
      [4000, 65_536],
    ]);
    for (const { offset, bytes } of takers.pieces)
      expect(bytes.equals(pattern(offset, bytes.length))).toBe(true);
  });
});

describe("the parser's scratch buffer", () => {
  it("receives a large payload in few steps once pieces are wanted", () => {
    const takers = new Takers(new Map([[0, { offset: 0, length: 4 * 1024 * 1024 }]]));
    const parser = new ReplyParser("structured", takers);
    expect(parser.target().length).toBe(256);
    parser.expectLargeReads();
    const calls = feed(parser, encode("structured", 0, { offset: 0, length: 4 * 1024 * 1024 }), [1e9]);
    expect(calls).toBeLessThanOrEqual(18);
  });

  it("grows with its content, in the middle of a header", () => {
    const takers = new Takers(new Map([[0, { offset: 512, length: 10_000 }]]));
    const parser = new ReplyParser("structured", takers);
    const bytes = encode("structured", 0, { offset: 512, length: 10_000 });
    feed(parser, bytes.subarray(0, 13), [13]);
    parser.expectLargeReads();
    feed(parser, bytes.subarray(13), [1e9]);
    expect(Buffer.concat(takers.pieces.map((piece) => piece.bytes)).equals(pattern(512, 10_000))).toBe(true);
  });

  it("grows for bytes that came into the small one, in the middle of a piece", () => {
    const takers = new Takers(new Map([[0, { offset: 512, length: 10_000 }]]));
    const parser = new ReplyParser("structured", takers);
    const bytes = encode("structured", 0, { offset: 512, length: 10_000 });
    // The kernel got the small buffer before anybody wanted pieces.
    const lent = parser.target();
    parser.expectLargeReads();
    lent.set(bytes.subarray(0, lent.length));
    parser.received(lent.length);
    feed(parser, bytes.subarray(lent.length), [1e9]);
    expect(Buffer.concat(takers.pieces.map((piece) => piece.bytes)).equals(pattern(512, 10_000))).toBe(true);
  });

  it("releases a reader in the middle of a payload unless the reader's buffer is being filled", () => {
    const takers = new Takers(
      new Map([
        [0, { offset: 0, length: 8192 }],
        [1, { offset: 0, length: 8192 }],
      ]),
    );
    const parser = new ReplyParser("structured", takers);
    parser.expectLargeReads();
    feed(parser, encode("structured", 0, { offset: 0, length: 8192 }).subarray(0, 5000), [1e9]);
    expect(parser.receivingFor).toBeUndefined();
    feed(parser, encode("structured", 0, { offset: 0, length: 8192 }).subarray(5000), [1e9]);
    feed(parser, encode("structured", 1, { offset: 0, length: 8192 }).subarray(0, 5000), [1e9]);
    expect(parser.receivingFor).toMatchObject({ offset: 0, length: 8192 });
  });

  it("keeps errors and data of several requests apart, chunk by chunk", () => {
    const takers = new Takers(
      new Map([
        [0, { offset: 0, length: 8192 }],
        [2, { offset: 8192, length: 8192 }],
      ]),
    );
    const parser = new ReplyParser("structured", takers);
    parser.expectLargeReads();
    const bytes = Buffer.concat([
      chunk(0, CHUNK.OFFSET_DATA, dataAt(4096, pattern(4096, 4096)), false),
      chunk(2, CHUNK.OFFSET_DATA, dataAt(8192, pattern(8192, 100)), false),
      chunk(0, CHUNK.OFFSET_DATA, dataAt(0, pattern(0, 4096)), false),
      chunk(2, CHUNK.ERROR, errorPayload(ERRNO.EIO)),
      chunk(0, CHUNK.NONE),
    ]);
    feed(parser, bytes, [777]);
    expect(takers.events).toEqual([`2 error ${ERRNO.EIO}`, "2 finished", "0 finished"]);
    for (const { offset, bytes: piece } of takers.pieces) {
      expect(piece.equals(pattern(offset, piece.length))).toBe(true);
    }
  });
});
