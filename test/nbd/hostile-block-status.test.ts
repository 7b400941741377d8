import { describe, expect, it } from "vitest";
import { NbdClient, type StatusBatch } from "../../src/nbd/index.js";
import { CHUNK, COMMAND, COMMAND_FLAG, ERRNO } from "../../src/nbd/wire/constants.js";
import { collect } from "../support/collect.js";
import { CONTEXTS, DIRTY, end, PROTOCOL, type Reply, replying, whole } from "../support/mock-replies.js";
import {
  chunk,
  dataAt,
  errorPayload,
  simpleReply,
  statusPayload,
  type TransmissionRequest,
} from "../support/mock-server.js";
import { pattern } from "./servers.js";

describe("the block status is refused, and the connection ended, for", () => {
  const reply =
    (contextId: number, ...extents: readonly (readonly [number, number])[]) =>
    (r: TransmissionRequest) =>
      Buffer.concat([
        chunk(r.cookie, CHUNK.BLOCK_STATUS, statusPayload(3 - contextId, [r.length, 0]), false),
        chunk(r.cookie, CHUNK.BLOCK_STATUS, statusPayload(contextId, ...extents)),
      ]);

  it.each<[string, Reply]>([
    ["an extent of zero length", reply(1, [512, 0], [0, 1], [512, 0])],
    ["nothing but an extent of zero length", reply(1, [0, 0])],
    ["extents behind the end of the request", reply(1, [2 ** 20, 0], [512, 0])],
    ["extents that all overshoot", reply(1, [0xffffffff, 0], [0xffffffff, 0])],
    [
      "a context that wasn't agreed on",
      (r) => chunk(r.cookie, CHUNK.BLOCK_STATUS, statusPayload(77, [512, 0])),
    ],
    ["a context twice", (r) => Buffer.concat([reply(1, [512, 0])(r).subarray(0, 32), reply(1, [512, 0])(r)])],
    ["a missing context", (r) => chunk(r.cookie, CHUNK.BLOCK_STATUS, statusPayload(1, [512, 0]))],
    ["no context at all", (r) => end(r)],
    ["a simple reply without an error", (r) => simpleReply(r.cookie)],
    ["data", (r) => chunk(r.cookie, CHUNK.OFFSET_DATA, dataAt(0, Buffer.alloc(512)))],
    [
      "late chunks without end",
      (r) =>
        Buffer.concat([
          chunk(r.cookie, CHUNK.ERROR, errorPayload(5)),
          ...new Array<Buffer>(100).fill(chunk(r.cookie, CHUNK.BLOCK_STATUS, statusPayload(1, [512, 0]))),
        ]),
    ],
  ])("%s", async (_title, answer) => {
    await using mock = await replying(answer, CONTEXTS);
    await using client = await NbdClient.connect(mock.uri, { metaContexts: CONTEXTS.contexts });
    await collect(client.blockStatus()).catch(() => {});
    await expect.poll(() => client.connections).toBe(0);
    await expect(collect(client.blockStatus())).rejects.toMatchObject({ name: "ProtocolError" });
  });

  it("more than the one extent that was requested", async () => {
    for (const extents of [
      [
        [512, 0],
        [512, 1],
      ],
      [[2 ** 20 + 1, 0]],
    ] as const) {
      await using mock = await replying(
        (r) => {
          expect(r.flags).toBe(COMMAND_FLAG.REQ_ONE);
          return chunk(r.cookie, CHUNK.BLOCK_STATUS, statusPayload(1, ...extents));
        },
        { contexts: [DIRTY] },
      );
      await using client = await NbdClient.connect(mock.uri, { metaContexts: [DIRTY] });
      await expect(collect(client.blockStatus({ onlyFirst: true }))).rejects.toMatchObject(PROTOCOL);
    }
  });
});

describe("the block status", () => {
  it("survives chunks after the end of a reply, as QEMU sends them when a context fails", async () => {
    let count = 0;
    await using mock = await replying((r) => {
      count += 1;
      if (r.command === COMMAND.READ) return whole(r);
      const good = [1, 2].map((id) => statusPayload(id, [r.length, id]));
      if (count > 1)
        return Buffer.concat(
          good.map((payload, index) => chunk(r.cookie, CHUNK.BLOCK_STATUS, payload, index === 1)),
        );
      const failed = chunk(r.cookie, CHUNK.ERROR, errorPayload(ERRNO.EIO, "no status"));
      return Buffer.concat([failed, failed, chunk(r.cookie, CHUNK.BLOCK_STATUS, good[1])]);
    }, CONTEXTS);
    await using client = await NbdClient.connect(mock.uri, { metaContexts: CONTEXTS.contexts });
    await expect(collect(client.blockStatus())).rejects.toMatchObject({
      errno: "EIO",
      command: "block status",
    });
    await client.read(0, Buffer.alloc(512));
    const batches: StatusBatch[] = await collect(client.blockStatus());
    expect(batches.map(({ offset, length }) => [offset, length])).toEqual([[0, 1024 * 1024]]);
  });

  it("is clipped if the server describes more than was requested", async () => {
    await using mock = await replying(
      (r) => chunk(r.cookie, CHUNK.BLOCK_STATUS, statusPayload(1, [512, 1], [0xffffffff, 0])),
      { contexts: [DIRTY] },
    );
    await using client = await NbdClient.connect(mock.uri, { metaContexts: [DIRTY] });
    const [batch] = await collect(client.blockStatus({ offset: 1024, length: 4096 }));
    expect(batch?.contexts.get(DIRTY)).toEqual([
      { offset: 1024, length: 512, flags: 1 },
      { offset: 1536, length: 3584, flags: 0 },
    ]);
  });

  it("is not requested without a context", async () => {
    await using mock = await replying(whole);
    await using client = await NbdClient.connect(mock.uri);
    await expect(collect(client.blockStatus())).rejects.toMatchObject({ code: "NBD_NOT_OFFERED" });
    await expect(collect(client.blockStatus({ offset: 2 ** 20 + 1 }))).rejects.toMatchObject({
      code: "NBD_OUT_OF_RANGE",
    });
  });
});

describe("a reader that stops reading the block status early", () => {
  it("abandons the requests that ran ahead, and leaves the connection usable", async () => {
    let asked = 0;
    const late: (() => void)[] = [];
    await using mock = await replying(
      (r, peer) => {
        if (r.command === COMMAND.READ) return whole(r);
        asked += 1;
        const reply = chunk(r.cookie, CHUNK.BLOCK_STATUS, statusPayload(1, [r.length, 0]));
        if (asked <= 5) return reply;
        late.push(() => peer.send(reply));
        return undefined;
      },
      { size: 2 ** 40, contexts: ["base:allocation"] },
    );
    const client = await NbdClient.connect(mock.uri, { metaContexts: ["base:allocation"] });
    let batches = 0;
    for await (const _batch of client.blockStatus()) {
      batches += 1;
      if (batches === 5) break;
    }
    await expect.poll(() => late.length).toBe(15);
    const target = Buffer.alloc(512);
    const reading = client.read(512, target);
    // A reply to an abandoned request is skipped.
    for (const send of late.slice(0, 3)) send();
    await reading;
    expect(target.equals(pattern(512, 512))).toBe(true);
    const before = Date.now();
    await client.close();
    expect(Date.now() - before).toBeLessThan(20_000);
  });
});
