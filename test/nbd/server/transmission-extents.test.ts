import { describe, expect, test } from "vitest";
import { requestFrame } from "./raw-client.js";
import {
  BLOCK_STATUS,
  DF,
  DONE,
  EINVAL,
  ERROR,
  errorOf,
  extentsOf,
  MIB,
  REQ_ONE,
  STATUS,
  serveDisks,
} from "./transmission-server.js";

describe("transmission of extents", () => {
  const disks = serveDisks();

  describe("block status", () => {
    test("each chosen context has a chunk, and only the last chunk is marked as done", async () => {
      await using client = await disks.connected(
        "structured",
        "disk",
        "qemu:dirty-bitmap:b",
        "base:allocation",
      );
      client.send(requestFrame({ type: BLOCK_STATUS, offset: 2, length: 28 }));
      const chunks = await client.chunks();
      expect(chunks).toMatchObject([
        { type: STATUS, flags: 0 },
        { type: STATUS, flags: DONE },
      ]);
      expect(chunks.map(extentsOf)).toEqual([
        [
          { length: 6, flags: 0 },
          { length: 8, flags: 3 },
          { length: 8, flags: 2 },
          { length: 6, flags: 0 },
        ],
        [
          { length: 22, flags: 0 },
          { length: 6, flags: 1 },
        ],
      ]);
    });

    test("REQ_ONE gets one extent of each context, inside the request", async () => {
      await using client = await disks.connected("structured", "disk", "base:allocation");
      client.send(requestFrame({ type: BLOCK_STATUS, flags: REQ_ONE, offset: 2, length: 3 }));
      expect((await client.chunks()).map(extentsOf)).toEqual([[{ length: 3, flags: 0 }]]);
    });

    test("extents that overshoot are clipped", async () => {
      await using client = await disks.connected("structured", "moody", "x:steady");
      client.send(requestFrame({ type: BLOCK_STATUS, offset: 3, length: 100 }));
      expect((await client.chunks()).map(extentsOf)).toEqual([[{ length: 100, flags: 7 }]]);
    });

    test("endless extents are limited to the size of a reply", async () => {
      await using client = await disks.connected("structured", "moody", "x:stripes");
      client.send(requestFrame({ type: BLOCK_STATUS, length: MIB }));
      const [chunk] = await client.chunks();
      expect(chunk?.payload).toHaveLength(4 + 8 * 8192);
    });

    test.each([
      { title: "of nothing", request: { offset: 0, length: 0 } },
      { title: "past the end", request: { offset: 64 * MIB - 1, length: 2 } },
      { title: "with DF", request: { flags: DF, length: 1 } },
    ])("$title is refused", async ({ request }) => {
      await using client = await disks.connected("structured", "disk", "base:allocation");
      client.send(requestFrame({ type: BLOCK_STATUS, ...request }));
      expect(errorOf((await client.chunks())[0])).toMatchObject({ type: ERROR, error: EINVAL });
    });
  });
});
