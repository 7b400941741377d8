import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { MemoryDisk, NbdClient, NbdServer, type StatusExtent } from "../../src/nbd/index.js";
import { CHUNK, COMMAND, COMMAND_FLAG, ERRNO, OPTION, TRANSMISSION } from "../../src/nbd/wire/constants.js";
import { collect } from "../support/collect.js";
import { recording } from "../support/mock-handshakes.js";
import {
  dataAt,
  errorPayload,
  extendedChunk,
  handshake,
  MockServer,
  statusPayload,
  u32,
  u64,
  wideStatusPayload,
} from "../support/mock-server.js";
import { makeFolder, pattern } from "./servers.js";

const TiB = 2 ** 40;
const EXTENDED = { protocol: "extended", size: 64 * TiB } as const;

describe("extended headers", () => {
  it("carry reads, holes and errors", async () => {
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer, { ...EXTENDED, flags: TRANSMISSION.HAS_FLAGS });
      const first = await peer.request(true);
      const at = first.offset;
      peer.send(
        extendedChunk(first.cookie, at, CHUNK.OFFSET_DATA, dataAt(at + 512, pattern(at + 512, 512)), false),
        extendedChunk(first.cookie, at, CHUNK.OFFSET_HOLE, Buffer.concat([u64(at), u32(512)])),
      );
      const second = await peer.request(true);
      peer.send(
        extendedChunk(second.cookie, second.offset, CHUNK.ERROR, errorPayload(ERRNO.EIO, "bad sector")),
      );
      await peer.gone();
    });
    await using client = await NbdClient.connect(mock.uri);
    expect(client.export.protocol).toBe("extended");
    const target = Buffer.alloc(1024, 0xee);
    await client.read(50 * TiB, target);
    expect(target.equals(Buffer.concat([Buffer.alloc(512), pattern(50 * TiB + 512, 512)]))).toBe(true);
    await expect(client.read(0, target)).rejects.toMatchObject({ errno: "EIO", serverText: "bad sector" });
  });

  it("carry a whole range of zeroes in one request, and the payload flag with a write", async () => {
    const seen: unknown[] = [];
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer, { ...EXTENDED, flags: TRANSMISSION.HAS_FLAGS | TRANSMISSION.SEND_WRITE_ZEROES });
      for (let count = 0; count < 2; count++) {
        const { command, flags, cookie, offset, length } = await peer.request(true);
        seen.push({ command, flags, offset, length });
        if (command === COMMAND.WRITE) expect(await peer.receive(length)).toEqual(pattern(0, length));
        peer.send(extendedChunk(cookie, offset, CHUNK.NONE));
      }
      await peer.gone();
    });
    await using client = await NbdClient.connect(mock.uri);
    await client.writeZeroes(TiB, 20 * TiB);
    await client.write(4096, pattern(0, 4096));
    expect(seen).toEqual([
      { command: COMMAND.WRITE_ZEROES, flags: 0, offset: TiB, length: 20 * TiB },
      { command: COMMAND.WRITE, flags: COMMAND_FLAG.PAYLOAD_LEN, offset: 4096, length: 4096 },
    ]);
  });

  it("carry block status in 64 bits, and in 32", async () => {
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer, { ...EXTENDED, contexts: ["base:allocation"] });
      for (let count = 0; ; count++) {
        const { cookie, offset, length } = await peer.request(true);
        const reply =
          count % 2 === 0
            ? { type: CHUNK.BLOCK_STATUS_EXT, payload: wideStatusPayload(1, [length - 4096, 3], [TiB, 0]) }
            : { type: CHUNK.BLOCK_STATUS, payload: statusPayload(1, [4096, 1], [4096, 2]) };
        peer.send(extendedChunk(cookie, offset, reply.type, reply.payload));
      }
    });
    await using client = await NbdClient.connect(mock.uri, { metaContexts: ["base:allocation"] });
    const batches = await collect(client.blockStatus({ length: 2 * TiB }));
    const extents = batches.flatMap(({ contexts }) => contexts.get("base:allocation") ?? []);
    expectGapless(extents, 0, 2 * TiB);
  });

  it.each([
    ["an extent whose length doesn't fit 53 bits", wideStatusPayload(1, [2n ** 53n, 0])],
    ["flags that don't fit 53 bits", wideStatusPayload(1, [4096, 2n ** 63n])],
    ["a count that doesn't match", Buffer.concat([u32(1), u32(2), u64(4096), u64(0)])],
  ])("end the connection on %s", async (_title, payload) => {
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer, { ...EXTENDED, contexts: ["base:allocation"] });
      const { cookie, offset } = await peer.request(true);
      peer.send(extendedChunk(cookie, offset, CHUNK.BLOCK_STATUS_EXT, payload));
      await peer.gone();
    });
    await using client = await NbdClient.connect(mock.uri, { metaContexts: ["base:allocation"] });
    await expect(collect(client.blockStatus())).rejects.toMatchObject({ name: "ProtocolError" });
  });

  it("end the connection on a reply with another offset", async () => {
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer, EXTENDED);
      const { cookie, offset, length } = await peer.request(true);
      peer.send(extendedChunk(cookie, offset + 512, CHUNK.OFFSET_DATA, dataAt(offset, Buffer.alloc(length))));
      await peer.gone();
    });
    await using client = await NbdClient.connect(mock.uri);
    await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({ name: "ProtocolError" });
  });

  it("are requested first, then structured replies", async () => {
    const options: number[] = [];
    await using mock = await MockServer.start(recording(options));
    await using client = await NbdClient.connect(mock.uri);
    expect(client.export.protocol).toBe("structured");
    expect(options).toEqual([OPTION.EXTENDED_HEADERS, OPTION.STRUCTURED_REPLY, OPTION.GO]);
  });

  it("work with the built-in server", async () => {
    await using folder = await makeFolder();
    const disk = new MemoryDisk({ size: 8 * 1024 * 1024 });
    disk.write(1024 * 1024, pattern(1024 * 1024, 65_536 * 3));
    const exports = new Map([["disk", disk.freeze()]]);
    await using server = await NbdServer.listen({ exports, address: { path: join(folder.path, "socket") } });
    await using client = await NbdClient.connect(server.uri("disk"), {
      metaContexts: ["base:allocation"],
      connections: 3,
    });
    expect(client.export.protocol).toBe("extended");
    const target = Buffer.alloc(client.export.size, 0xee);
    await client.read(0, target);
    expect(
      target.subarray(1024 * 1024, 1024 * 1024 + 65_536 * 3).equals(pattern(1024 * 1024, 65_536 * 3)),
    ).toBe(true);
    const [batch] = await collect(client.blockStatus());
    expect(batch?.contexts.get("base:allocation")?.map(({ offset, flags }) => [offset, flags])).toEqual([
      [0, 3],
      [1024 * 1024, 0],
      [1024 * 1024 + 65_536 * 3, 3],
    ]);
  });
});

function expectGapless(extents: readonly StatusExtent[], from: number, to: number): void {
  let position = from;
  for (const { offset, length } of extents) {
    expect(offset).toBe(position);
    expect(length).toBeGreaterThan(0);
    position += length;
  }
  expect(position).toBe(to);
}
