import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { NbdServer, type ServedExport } from "../../../src/nbd/server/index.js";
import { extendedRequestFrame, infoQuery, metaQuery, RawClient, u32, u64 } from "./raw-client.js";
import {
  BLOCK_STATUS,
  DONE,
  EINVAL,
  EPERM,
  ERROR,
  EXTENDED_HEADERS,
  errorOf,
  GO,
  OFFSET_DATA,
  OFFSET_HOLE,
  PAYLOAD_LEN,
  READ,
  SET_META_CONTEXT,
  STATUS_EXT,
  serveDisks,
  WRITE,
} from "./transmission-server.js";

describe("transmission", () => {
  const disks = serveDisks();

  describe("extended headers", () => {
    test("a read is split as usual, and repeats the request's offset", async () => {
      await using client = await disks.connected("extended");
      client.send(extendedRequestFrame({ type: READ, offset: 4, length: 10 }));
      expect(await client.chunks()).toEqual([
        {
          type: OFFSET_DATA,
          flags: 0,
          cookie: 7n,
          offset: 4n,
          payload: Buffer.concat([u64(4), Buffer.from("efgh")]),
        },
        { type: OFFSET_HOLE, flags: DONE, cookie: 7n, offset: 4n, payload: Buffer.concat([u64(8), u32(6)]) },
      ]);
    });

    test("an offset past all exports is returned exactly, with the error", async () => {
      await using client = await disks.connected("extended");
      const offset = 2n ** 63n + 1n;
      client.send(extendedRequestFrame({ type: READ, offset, length: 2n ** 64n - 1n }));
      const [chunk] = await client.chunks();
      expect(chunk).toMatchObject({ offset, type: ERROR });
      expect(errorOf(chunk)).toMatchObject({ error: EINVAL });
    });

    test("block status has 64-bit extents preceded by their number", async () => {
      const huge: ServedExport = {
        size: 2 ** 52,
        read: (_offset, length) => new Uint8Array(length),
        contexts: new Map([["base:allocation", () => [{ length: 2 ** 52, flags: 3 }]]]),
      };
      await using other = await NbdServer.listen({
        exports: new Map([["", huge]]),
        address: { path: join(disks.directory, "huge.sock") },
      });
      await using client = await RawClient.greeted(other);
      await client.option(EXTENDED_HEADERS);
      await client.option(SET_META_CONTEXT, metaQuery("", "base:allocation"));
      await client.option(GO, infoQuery(""));
      client.send(extendedRequestFrame({ type: BLOCK_STATUS, offset: 5, length: 2 ** 52 - 5 }));
      const [chunk] = await client.chunks();
      expect(chunk).toMatchObject({ type: STATUS_EXT, flags: DONE });
      expect(chunk?.payload.subarray(4)).toEqual(Buffer.concat([u32(1), u64(2 ** 52 - 5), u64(3)]));
    });

    test("a payload in the wrong place is skipped and refused", async () => {
      await using client = await disks.connected("extended", "disk", "base:allocation");
      client.send(
        extendedRequestFrame({ type: BLOCK_STATUS, flags: PAYLOAD_LEN, length: 12 }),
        Buffer.alloc(12),
        extendedRequestFrame({ type: WRITE, flags: PAYLOAD_LEN, length: 5 }),
        Buffer.alloc(5),
      );
      expect(errorOf((await client.chunks())[0])).toMatchObject({ error: EINVAL });
      expect(errorOf((await client.chunks())[0])).toMatchObject({ error: EPERM });
    });
  });
});
