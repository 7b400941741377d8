/** A server with well-behaved and failing disks, for the tests of the transmission phase. */

import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, expect } from "vitest";
import {
  type DescribeExtents,
  MemoryDisk,
  NbdServer,
  type NbdServerEvent,
  ServedError,
  type ServedExport,
} from "../../../src/nbd/server/index.js";
import { type Chunk, infoQuery, metaQuery, RawClient } from "./raw-client.js";
import { temporaryDirectory } from "./tools.js";

export const GO = 7;
export const STRUCTURED_REPLY = 8;
export const SET_META_CONTEXT = 10;
export const EXTENDED_HEADERS = 11;

export const READ = 0;
export const WRITE = 1;
export const DISC = 2;
export const FLUSH = 3;
export const TRIM = 4;
export const WRITE_ZEROES = 6;
export const BLOCK_STATUS = 7;

export const DF = 4;
export const REQ_ONE = 8;
export const PAYLOAD_LEN = 32;

export const NONE = 0;
export const OFFSET_DATA = 1;
export const OFFSET_HOLE = 2;
export const STATUS = 5;
export const STATUS_EXT = 6;
export const ERROR = 0x8001;
export const DONE = 1;

export const EPERM = 1;
export const EIO = 5;
export const ENOMEM = 12;
export const EINVAL = 22;

export const MIB = 1024 * 1024;

/** Eight-byte pages: "abcdefgh", hole, zero, "ABCDEFGH", hole ... up to 64 MiB. */
function smallPages(): MemoryDisk {
  const disk = new MemoryDisk({ size: 64 * MIB, pageSize: 8 });
  disk.write(0, Buffer.from("abcdefgh"));
  disk.writeZeroes(16, 8);
  disk.startBitmap("b", 4);
  disk.write(24, Buffer.from("ABCDEFGH"));
  return disk;
}

/** Extents of a structured block status. */
export const extentsOf = ({ payload }: Chunk): { length: number; flags: number }[] =>
  Array.from({ length: (payload.length - 4) / 8 }, (_, index) => ({
    length: payload.readUInt32BE(4 + 8 * index),
    flags: payload.readUInt32BE(8 + 8 * index),
  }));

export const errorOf = (
  chunk: Chunk | undefined,
): { type: number | undefined; error: number | undefined; text: string } => ({
  type: chunk?.type,
  error: chunk?.payload.readUInt32BE(0),
  text: chunk?.payload.subarray(6).toString() ?? "",
});

/** Fails at some offsets, with errors that are meant for the client and errors that are not. */
const moody: ServedExport = {
  size: 4 * MIB,
  read: (offset, length) => {
    if (offset === 0) throw new ServedError("ENOMEM", "too much to ask");
    if (offset === MIB) throw new Error("secret path /etc/shadow");
    if (offset === 3 * MIB) throw new ServedError("EIO", `x${"ä".repeat(3000)}`);
    if (offset === 2 * MIB) return new Uint8Array(length - 1);
    return new Uint8Array(length).fill(0x55);
  },
  contexts: new Map<string, DescribeExtents>([
    [
      "x:moods",
      (offset) => {
        if (offset === 0) throw new ServedError("EIO", "in no mood");
        return offset === MIB ? [] : [{ length: 8 * MIB, flags: 3 }];
      },
    ],
    ["x:steady", () => [{ length: 8 * MIB, flags: 7 }]],
    // Every byte differs from its neighbours.
    [
      "x:stripes",
      function* () {
        for (let flags = 0; ; flags = 1 - flags) yield { length: 1, flags };
      },
    ],
  ]),
};

/** Starts the server before the tests of a `describe`, and stops it after them. */
export function serveDisks() {
  const point = smallPages().freeze();
  const events: NbdServerEvent[] = [];
  let directory: Awaited<ReturnType<typeof temporaryDirectory>> | undefined;
  let server: NbdServer | undefined;

  beforeAll(async () => {
    directory = await temporaryDirectory();
    server = await NbdServer.listen({
      exports: new Map([
        ["disk", point],
        ["moody", moody],
        ["picky", { ...point, blockSize: { minimum: 512, preferred: 4096, maximum: 65536 } }],
      ]),
      address: { path: join(directory.path, "nbd.sock") },
      onEvent: (event) => events.push(event),
    });
  });
  beforeEach(() => {
    events.length = 0;
  });
  afterAll(async () => {
    await server?.close();
    await directory?.[Symbol.asyncDispose]();
  });

  return {
    point,
    /** The events since the test began. */
    events,
    get server(): NbdServer {
      return started(server);
    },
    get directory(): string {
      return directory?.path ?? "";
    },
    /** A client after the handshake. */
    connected: async (
      mode: "simple" | "structured" | "extended",
      exportName = "disk",
      ...contexts: string[]
    ): Promise<RawClient> => {
      const client = await RawClient.greeted(started(server));
      if (mode === "structured") await client.option(STRUCTURED_REPLY);
      if (mode === "extended") await client.option(EXTENDED_HEADERS);
      if (contexts.length > 0) await client.option(SET_META_CONTEXT, metaQuery(exportName, ...contexts));
      expect(await client.outcome(GO, infoQuery(exportName, 3))).toBe(1);
      return client;
    },
  };
}

function started(server: NbdServer | undefined): NbdServer {
  if (server === undefined) throw new Error("the server isn't started yet");
  return server;
}
