/**
 * The client refuses or understands any bytes: it never crashes, hangs, returns a wrong byte or floods
 * memory.
 */

import fc from "fast-check";
import { expect, it } from "vitest";
import { NbdClient, NbdError } from "../../src/nbd/index.js";
import { type Negotiation, negotiate, negotiateList } from "../../src/nbd/negotiate.js";
import { CHUNK, COMMAND, OPTION, OPTION_REPLY } from "../../src/nbd/wire/constants.js";
import { Descriptors } from "../../src/nbd/wire/descriptors.js";
import { decodeInfo, decodeMetaContext, decodeServer } from "../../src/nbd/wire/options.js";
import { collect } from "../support/collect.js";
import { anyFaults, type Fault, FaultyLine } from "../support/faulty-line.js";
import {
  answer,
  chunk,
  type ExportFacts,
  extendedChunk,
  greeting,
  MockServer,
  metaContext,
  optionReply,
  type Peer,
  simpleReply,
  statusPayload,
  u32,
  u64,
  wideStatusPayload,
} from "../support/mock-server.js";
import { pattern } from "./servers.js";

const DISK = 4 * 1024 * 1024;
const DIRTY = "qemu:dirty-bitmap:b0";

type Protocol = "simple" | "structured" | "extended";

/** A server that answers what it understands over a faulty line. */
async function serve(peer: Peer, protocol: Protocol, line: FaultyLine, handshakeOver: () => void) {
  const facts: ExportFacts = {
    size: DISK,
    flags: 3,
    protocol,
    contexts: ["base:allocation", DIRTY],
    blockSize: [1, 4096, 2 ** 25],
  };
  line.send(greeting());
  await peer.receive(4);
  for (let option = 0; option !== OPTION.GO; ) {
    const request = await peer.option();
    option = request.option;
    line.send(Buffer.concat(answer(option, request.data, facts)));
  }
  handshakeOver();
  while (true) {
    const { command, cookie, offset, length } = await peer.request(protocol === "extended");
    if (command === COMMAND.READ) sendData(line, protocol, cookie, offset, length);
    else if (command === COMMAND.BLOCK_STATUS) sendStatus(line, protocol, cookie, offset, length);
    else return;
  }
}

function sendData(
  line: FaultyLine,
  protocol: Protocol,
  cookie: number,
  offset: number,
  length: number,
): void {
  if (protocol === "simple") {
    line.send(simpleReply(cookie), pattern(offset, length));
    return;
  }
  const half = Math.floor(length / 2);
  const head = (at: number, count: number, done: boolean) => {
    const payload = Buffer.concat([u64(at), Buffer.alloc(count)]);
    const bytes =
      protocol === "extended"
        ? extendedChunk(cookie, offset, CHUNK.OFFSET_DATA, payload, done)
        : chunk(cookie, CHUNK.OFFSET_DATA, payload, done);
    return bytes.subarray(0, bytes.length - count);
  };
  line.send(head(offset + half, length - half, false), pattern(offset + half, length - half));
  line.send(head(offset, half, true), pattern(offset, half));
}

function sendStatus(
  line: FaultyLine,
  protocol: Protocol,
  cookie: number,
  offset: number,
  length: number,
): void {
  const half = Math.ceil(length / 2);
  const extents = [
    [half, 0],
    [length, 1],
  ] as const;
  for (const id of [1, 2]) {
    line.send(
      protocol === "extended"
        ? extendedChunk(cookie, offset, CHUNK.BLOCK_STATUS_EXT, wideStatusPayload(id, ...extents), id === 2)
        : chunk(cookie, CHUNK.BLOCK_STATUS, statusPayload(id, ...extents), id === 2),
    );
  }
}

const READS = [
  [0, 4096],
  [8192, 70_000],
  [DISK - 512, 512],
  [12_345, 1234],
] as const;

/**
 * What a backup does.
 * @returns the number of successful reads; all have the right bytes, unless `mayLie`
 */
async function useClient(uri: string, mayLie: () => boolean): Promise<number> {
  await using client = await NbdClient.connect(uri, {
    optionalContexts: ["base:allocation", DIRTY],
    connectTimeoutMs: 2000,
    idleTimeoutMs: 2000,
  });
  if (client.export.contexts.length > 0 && client.export.size === DISK) {
    const batches = await collect(client.blockStatus()).catch(expectNbdError);
    let position = 0;
    for (const batch of batches ?? []) {
      expect(batch.offset).toBe(position);
      position += batch.length;
      for (const extents of batch.contexts.values()) {
        expect(extents.reduce((sum, { length }) => sum + length, 0)).toBe(batch.length);
      }
    }
  }
  const reads = READS.map(async ([offset, length]) => {
    const target = Buffer.alloc(length, 0xee);
    await client.read(offset, target);
    if (!mayLie()) expect(target.equals(pattern(offset, length)), "wrong bytes").toBe(true);
  });
  const outcomes = await Promise.allSettled(reads);
  for (const outcome of outcomes) if (outcome.status === "rejected") expectNbdError(outcome.reason);
  return outcomes.filter(({ status }) => status === "fulfilled").length;
}

function expectNbdError(error: unknown): undefined {
  if (!(error instanceof NbdError)) throw error;
  return undefined;
}

async function converse(
  protocol: Protocol,
  faults: readonly Fault[],
): Promise<{ length: number; handshake: number; reads: number }> {
  let line: FaultyLine | undefined;
  let handshake = Number.POSITIVE_INFINITY;
  await using mock = await MockServer.start((peer) => {
    const faulty = new FaultyLine(peer, faults);
    line = faulty;
    // A client that waits for what is lost would wait for long.
    if (faults.length > 0) peer.socket.setTimeout(40, () => peer.socket.destroy());
    return serve(peer, protocol, faulty, () => {
      handshake = faulty.position;
    });
  });
  // A fault in the handshake can describe another valid export, and a simple reply does not say which request
  // it answers. A lost or added byte shifts the payload: the next reply reveals that, but this one is already
  // complete.
  const mayLie = () =>
    protocol === "simple" ||
    faults.some(({ at, kind }) => at < handshake || kind === "insert" || kind === "delete");
  const reads = await useClient(mock.uri, mayLie).catch((error: unknown) => {
    expectNbdError(error);
    return 0;
  });
  return { length: line?.position ?? 0, handshake, reads };
}

it.each<[Protocol]>([["structured"], ["extended"], ["simple"]])(
  "a conversation in %s replies with faults never leads to a crash, a hang or a wrong byte",
  async (protocol) => {
    const flawless = await converse(protocol, []);
    expect(flawless.reads).toBe(READS.length);
    await fc.assert(
      fc.asyncProperty(anyFaults(flawless), async (list) => {
        const before = Date.now();
        await converse(protocol, list);
        expect(Date.now() - before, "a hang").toBeLessThan(30_000);
      }),
      { numRuns: 120 },
    );
    expect(process.memoryUsage().arrayBuffers).toBeLessThan(256 * 1024 * 1024);
  },
);

/** Plays a negotiation against an endless stream of bytes; fails if it does not end. */
function play(negotiation: Negotiation<unknown>, next: (length: number) => Uint8Array): void {
  let received: Uint8Array = new Uint8Array(0);
  for (let steps = 0; ; steps++) {
    expect(steps).toBeLessThan(300_000);
    const turn = negotiation.next(received);
    if (turn.done) return;
    received = turn.value.kind === "receive" ? next(turn.value.length) : new Uint8Array(0);
    if (turn.value.kind === "receive") expect(turn.value.length).toBeLessThanOrEqual(65_536);
  }
}

it("a negotiation always ends, whatever the server sends", () => {
  const wish = {
    exportName: "disk",
    tls: false,
    metaContexts: [],
    optionalContexts: [DIRTY],
    listContexts: true,
  };
  const contexts = ["base:allocation", DIRTY];
  const flawless = Buffer.concat([
    greeting(),
    ...[OPTION.EXTENDED_HEADERS, OPTION.STRUCTURED_REPLY].flatMap((option) =>
      answer(option, Buffer.alloc(0), {}),
    ),
    optionReply(OPTION.LIST_META_CONTEXT, OPTION_REPLY.META_CONTEXT, metaContext(0, DIRTY)),
    optionReply(OPTION.LIST_META_CONTEXT, OPTION_REPLY.ACK),
    ...answer(OPTION.SET_META_CONTEXT, Buffer.from(DIRTY), { contexts }),
    ...answer(OPTION.GO, Buffer.alloc(0), { blockSize: [1, 512, 512] }),
  ]);
  const changes = fc.array(fc.tuple(fc.nat(flawless.length - 1), fc.integer({ min: 0, max: 255 })), {
    maxLength: 4,
  });
  fc.assert(
    fc.property(
      changes,
      fc.uint8Array({ minLength: 1 }),
      fc.constantFrom(negotiate, negotiateList),
      (list, filler, how) => {
        const bytes = Buffer.from(flawless);
        for (const [at, value] of list) bytes[at] = value;
        let position = 0;
        const next = (length: number) => {
          const taken = Buffer.alloc(length, filler);
          taken.set(bytes.subarray(position, position + length));
          position += length;
          return taken;
        };
        try {
          play(how(wish), next);
        } catch (error) {
          expectNbdError(error);
        }
      },
    ),
    { numRuns: 1000 },
  );
});

it("every decoder of handshake payloads returns or refuses", () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 64 }),
      fc.constantFrom(decodeInfo, decodeMetaContext, decodeServer),
      (bytes, decode) => {
        try {
          decode(bytes);
        } catch (error) {
          expectNbdError(error);
        }
      },
    ),
    { numRuns: 2000 },
  );
});

it("descriptors are accepted only if they cover their request in order, and nothing past its end", () => {
  const pairs = fc.array(fc.tuple(fc.integer({ min: 0, max: 5 }), fc.nat(3)), { maxLength: 6 });
  fc.assert(
    fc.property(pairs, fc.integer({ min: 1, max: 12 }), fc.boolean(), (list, length, onlyOne) => {
      const descriptors = new Descriptors(
        Buffer.concat(list.flatMap(([size, flags]) => [u32(size), u32(flags)])),
        8,
      );
      const total = list.reduce((sum, [size]) => sum + size, 0);
      const beforeLast = total - (list.at(-1)?.[0] ?? 0);
      const isRight = list.length > 0 && list.every(([size]) => size > 0) && beforeLast < length;
      const isOne = list.length === 1 && total <= length;
      if (isRight && (!onlyOne || isOne)) descriptors.validate(length, onlyOne);
      else expect(() => descriptors.validate(length, onlyOne)).toThrow(/the server sent/);
    }),
    { numRuns: 1000 },
  );
});
