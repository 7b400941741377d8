import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { openExport } from "../../../src/backup/export/open-export.js";
import { pullFile } from "../../../src/backup/take/pull-file.js";
import { COMMAND } from "../../../src/nbd/wire/constants.js";
import { makeFolder } from "../../nbd/servers.js";
import { type MockDisk, serveDisk } from "../../support/mock-disk.js";
import { guestBytes, KiB } from "../image/support.js";

const CLUSTER = 64 * KiB;
const RECONNECT = { attempts: 3, delayMs: 1, maxDelayMs: 5 };

/** Clusters with different content. */
function clusters(count: number): Buffer {
  return Buffer.concat(Array.from({ length: count }, (_, at) => Buffer.alloc(CLUSTER, at + 1)));
}

async function pulled(disk: MockDisk, options: object = {}, bitmap?: string): Promise<Buffer> {
  const folder = await makeFolder();
  onTestFinished(() => folder[Symbol.asyncDispose]());
  const server = await serveDisk(disk);
  onTestFinished(() => server[Symbol.asyncDispose]());
  await using client = await openExport(server.uri, bitmap, { reconnect: RECONNECT });
  const imagePath = join(folder.path, "image.qcow2");
  const window = { requestSize: CLUSTER, inFlight: 8 * CLUSTER };
  try {
    await pullFile({
      ...{ client, imagePath, format: "qcow2", bitmap, force: false, sync: false, window },
      ...options,
    });
  } catch (error) {
    expect(await readdir(folder.path)).toEqual([]);
    throw error;
  }
  return await guestBytes(imagePath);
}

describe("a pull", () => {
  it.each([undefined, "xxh64", "sha256"])(
    "is right for any order of replies, with digests: %s",
    async (digests) => {
      const content = clusters(40);
      const held: (() => void)[] = [];
      const onRequest = (_request: unknown, answer: () => void) => {
        held.push(answer);
        // All eight lanes ask at once; the answers come in reverse order.
        if (held.length % 8 === 0) for (const release of held.splice(0).reverse()) release();
      };
      expect((await pulled({ content, onRequest }, { digests })).equals(content)).toBe(true);
    },
  );

  it("stores what the new connection delivers, not what the lost one did", async () => {
    const content = clusters(8);
    content.fill(0, 2 * CLUSTER, 4 * CLUSTER);
    let reads = 0;
    const stale = content.map(() => 0xee);
    const wrong = serveWrong(stale);
    const bytes = await pulled(
      {
        content,
        onRequest: (request, answer, peer, index) => {
          reads += 1;
          if (index > 0) return answer();
          // Much wrong data for a cluster that is zeroes, and nothing for the others.
          if (request.offset === 2 * CLUSTER)
            peer.socket.write(wrong(request.cookie, request.offset, request.length).subarray(0, 40_000));
          if (reads === 8) setTimeout(() => peer.socket.end(), 10);
        },
      },
      { digests: "xxh64" },
    );
    expect(bytes.equals(content)).toBe(true);
  });

  it("digests a cluster whose last part came first and is zeroes", async () => {
    const content = clusters(3);
    content.fill(0, 2 * CLUSTER + 32 * KiB);
    const bytes = await pulled(
      {
        content,
        facts: { blockSize: [1, 4096, 32 * KiB] },
        onRequest: ({ offset }, answer) => {
          if (offset === 2 * CLUSTER) setTimeout(answer, 50);
          else answer();
        },
      },
      { digests: "xxh64" },
    );
    expect(bytes.equals(content)).toBe(true);
  });

  it("leaves nothing if the file is truncated before it is digested", async () => {
    const content = clusters(8);
    const folder = await makeFolder();
    onTestFinished(() => folder[Symbol.asyncDispose]());
    await using server = await serveDisk({
      content,
      onRequest: async ({ offset }, answer) => {
        if (offset > 0) return answer();
        await new Promise((resolve) => setTimeout(resolve, 100));
        const { truncate } = await import("node:fs/promises");
        for (const name of await readdir(folder.path)) await truncate(join(folder.path, name), 0);
        answer();
      },
    });
    await using client = await openExport(server.uri, undefined, {});
    const pulling = pullFile({
      ...{ client, imagePath: join(folder.path, "x.qcow2"), format: "qcow2", bitmap: undefined },
      ...{
        force: false,
        sync: false,
        digests: "sha256",
        window: { requestSize: CLUSTER, inFlight: 8 * CLUSTER },
      },
    });
    await expect(pulling).rejects.toMatchObject({ code: "E_DIGEST_READ" });
    expect(await readdir(folder.path)).toEqual([]);
  });

  it("that is aborted in the middle of a payload leaves nothing, and its connection stays good", async () => {
    const content = clusters(32);
    const abort = new AbortController();
    const folder = await makeFolder();
    onTestFinished(() => folder[Symbol.asyncDispose]());
    const wrong = serveWrong(content);
    let isOver = false;
    await using server = await serveDisk({
      content,
      onRequest: ({ offset, cookie, length }, answer, peer) => {
        if (offset >= 4 * CLUSTER) expect(isOver).toBe(false);
        // A request after the abort waits for the rest of the aborted payload.
        if (isOver) return void setTimeout(answer, 40);
        if (offset < 4 * CLUSTER) return answer();
        const reply = wrong(cookie, offset, length);
        isOver = true;
        peer.socket.write(reply.subarray(0, 20_000));
        setTimeout(() => abort.abort(new Error("enough")), 5);
        setTimeout(() => peer.socket.write(reply.subarray(20_000)), 20);
      },
    });
    await using client = await openExport(server.uri, undefined, {});
    const pulling = pullFile({
      ...{
        client,
        imagePath: join(folder.path, "x.raw"),
        format: "raw",
        bitmap: undefined,
        signal: abort.signal,
      },
      ...{ force: false, sync: false, window: { requestSize: CLUSTER, inFlight: CLUSTER } },
    });
    await expect(pulling).rejects.toThrow("enough");
    expect(await readdir(folder.path)).toEqual([]);
    const target = Buffer.alloc(CLUSTER);
    await client.read(0, target);
    expect([target.equals(content.subarray(0, CLUSTER)), client.connections]).toEqual([true, 1]);
  });
});

describe("a pull of a mapped disk", () => {
  const status = (log: readonly number[]) => log.lastIndexOf(COMMAND.BLOCK_STATUS);
  async function logged(flags: readonly number[], limits: Partial<MockDisk>): Promise<number[]> {
    const log: number[] = [];
    const content = Buffer.alloc(flags.length * CLUSTER, 1);
    for (const [at, flag] of flags.entries())
      if (flag !== 0) content.fill(0, at * CLUSTER, (at + 1) * CLUSTER);
    const bytes = await pulled({
      content,
      contexts: [{ name: "base:allocation", unit: CLUSTER, flags }],
      ...limits,
      onRequest: ({ command }, answer) => {
        log.push(command);
        setTimeout(answer, 1);
      },
    });
    expect(bytes.equals(content)).toBe(true);
    return log;
  }

  it("reads before the map is complete", async () => {
    const flags = Array.from({ length: 256 }, (_, at) => (at % 2) * 3);
    const log = await logged(flags, { extentsInReply: 4 });
    expect(status(log)).toBeGreaterThan(10);
    expect(log.indexOf(COMMAND.READ)).toBeLessThan(status(log) - 5);
  });

  it("reads before the map is complete even if the whole disk is alike", async () => {
    const log = await logged(new Array<number>(256).fill(0), { statusBytes: 4 * CLUSTER });
    expect(status(log)).toBeGreaterThan(10);
    expect(log.indexOf(COMMAND.READ)).toBeLessThan(status(log) - 5);
  });
});

describe("requests", () => {
  /** The longest read, and the most bytes that were requested and not yet answered. */
  async function measured(disk: Omit<MockDisk, "onRequest">, window: object, bitmap?: string) {
    const most = { read: 0, outstanding: 0 };
    let outstanding = 0;
    await pulled(
      {
        ...disk,
        onRequest: ({ command, length }, answer) => {
          if (command !== COMMAND.READ) return answer();
          outstanding += length;
          most.read = Math.max(most.read, length);
          most.outstanding = Math.max(most.outstanding, outstanding);
          setTimeout(() => {
            outstanding -= length;
            answer();
          }, 5);
        },
      },
      { window },
      bitmap,
    );
    return most;
  }

  it("keep to the given size and bytes in flight", async () => {
    const window = { requestSize: 2 * CLUSTER, inFlight: 6 * CLUSTER };
    expect(await measured({ content: clusters(60) }, window)).toEqual({
      read: 2 * CLUSTER,
      outstanding: 6 * CLUSTER,
    });
  });

  /** Measures a pull that reads through clean bytes. */
  function readThrough() {
    // Fine enough for clusters of 16 KiB, of which every third is dirty.
    const flags = Array.from({ length: 64 * 64 }, (_, at) => (at % 48 < 16 || at === 20 ? 1 : 0));
    const contexts = [
      { name: "base:allocation", unit: 64 * CLUSTER, flags: [0] },
      { name: "qemu:dirty-bitmap:b", unit: KiB, flags },
    ];
    const window = { requestSize: 4 * CLUSTER, inFlight: 8 * CLUSTER };
    return measured({ content: clusters(64), contexts }, window, "b");
  }

  it("keep to that size when they read through clean bytes", async () => {
    const { read } = await readThrough();
    expect(read).toBeGreaterThan(CLUSTER);
    expect(read).toBeLessThanOrEqual(4 * CLUSTER);
  });

  it("are counted by what they store, not by the clean bytes that they read through", async () => {
    // A third of what is read is stored.
    const { outstanding } = await readThrough();
    expect(outstanding).toBeGreaterThan(8 * CLUSTER);
    expect(outstanding).toBeLessThanOrEqual(3 * 8 * CLUSTER);
  });
});

/** Makes the reply of a server that has other bytes. */
function serveWrong(content: Uint8Array) {
  return (cookie: number, offset: number, length: number): Buffer => {
    const head = Buffer.alloc(28);
    head.writeUInt32BE(0x668e33ef, 0);
    head.writeUInt16BE(1, 4);
    head.writeUInt16BE(1, 6);
    head.writeBigUInt64BE(BigInt(cookie), 8);
    head.writeUInt32BE(8 + length, 16);
    head.writeBigUInt64BE(BigInt(offset), 20);
    return Buffer.concat([head, content.subarray(offset, offset + length)]);
  };
}
