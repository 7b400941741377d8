import { access } from "node:fs/promises";
import { describe, expect, test, vi } from "vitest";
import type { NbdServerEvent, ServedExport } from "../../../src/nbd/server/index.js";
import { infoQuery, optionFrame, RawClient, requestFrame, u32 } from "./raw-client.js";
import { connected, recordServers } from "./recorded-servers.js";

const GO = 7;
const LIST = 3;
const READ = 0;
const FLUSH = 3;
const MIB = 1024 * 1024;

/** Counts its reads, which wait for `hold` or an abort. */
class WatchedExport implements ServedExport {
  readonly size = 64 * MIB;
  started = 0;
  underWay = 0;
  aborted = 0;
  /** Without it, reads end at once. */
  hold: Promise<void> | undefined;

  readonly read = async (_offset: number, length: number, signal?: AbortSignal): Promise<Uint8Array> => {
    this.started += 1;
    this.underWay += 1;
    try {
      await new Promise<void>((resolve, reject) => {
        signal?.addEventListener("abort", () => {
          this.aborted += 1;
          reject(signal.reason);
        });
        if (this.hold === undefined) resolve();
        else void this.hold.then(resolve);
      });
      return new Uint8Array(length);
    } finally {
      this.underWay -= 1;
    }
  };
}

const FOREVER = new Promise<void>(() => {});

describe("limits", () => {
  const { events, listen, socket } = recordServers();

  const reads = (count: number, length: number): Buffer[] =>
    Array.from({ length: count }, (_, cookie) => requestFrame({ type: READ, cookie, length }));

  /** Waits until a number stops growing. */
  async function settled(value: () => number): Promise<number> {
    for (let before = -1; ; ) {
      const now = value();
      if (now === before) return now;
      before = now;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }

  test("a listener that throws does not stop the server, which still closes", async () => {
    const thrown: unknown[] = [];
    // Catches the errors, which as uncaught exceptions would end the test run.
    vi.stubGlobal("queueMicrotask", (task: () => void) => {
      Promise.resolve()
        .then(task)
        .catch((error: unknown) => thrown.push(error));
    });
    try {
      const onEvent = ({ type }: NbdServerEvent) => {
        throw new Error(type);
      };
      const server = await listen(new WatchedExport(), { onEvent });
      await using client = await connected(server);
      await server.close();
      client.socket.destroy();
      const types = ["connected", "export-opened", "disconnected"];
      expect(thrown).toEqual(types.map((type) => new Error(type)));
    } finally {
      vi.unstubAllGlobals();
    }
  });

  test("a client that never reads its replies is throttled", async () => {
    const disk = new WatchedExport();
    await using client = await connected(await listen(disk));
    client.send(...reads(50_000, MIB));
    // 16 in flight, and what fits the socket's buffers.
    expect(await settled(() => disk.started)).toBeLessThan(24);
    // The server reads only as many requests as it has room for.
    expect(client.socket.writableLength).toBeGreaterThan(0);
  });

  test("the largest reads are limited to two at a time", async () => {
    const disk = new WatchedExport();
    disk.hold = FOREVER;
    await using client = await connected(await listen(disk));
    client.send(...reads(10, 32 * MIB));
    expect(await settled(() => disk.started)).toBe(2);
  });

  test("all clients share the space for replies, and a stalled client is disconnected when others need it", async () => {
    const disk = new WatchedExport();
    const server = await listen(disk, { maxReplyBytes: 8 * MIB, stallTimeoutMs: 200 });
    await using greedy = await connected(server);
    greedy.send(...reads(50, MIB));
    const first = await settled(() => disk.started);
    expect(first).toBeLessThan(12);
    // No other client needs the space yet.
    await new Promise((resolve) => setTimeout(resolve, 600));
    await using patient = await connected(server);
    patient.send(requestFrame({ type: READ, cookie: 7, length: MIB }));
    expect((await patient.simpleReply(MIB)).error).toBe(0);
    await expect.poll(() => events.at(-1)).toMatchObject({ connection: 1, error: { code: "STALLED" } });

    // A client that leaves releases its space, even while it waits.
    patient.send(...reads(5, MIB));
    for (let replies = 0; replies < 5; replies++) await patient.simpleReply(MIB);
  });

  test("a client that reads late still gets everything", async () => {
    const disk = new WatchedExport();
    await using client = await connected(await listen(disk));
    client.send(...reads(50, MIB));
    await settled(() => disk.started);
    for (let replies = 0; replies < 50; replies++) {
      expect((await client.simpleReply(MIB)).error).toBe(0);
    }
  });

  test("a flood of refused requests is throttled too", async () => {
    await using client = await connected(await listen(new WatchedExport()));
    const flood = Buffer.concat(Array.from({ length: 10_000 }, () => requestFrame({ type: FLUSH })));
    for (let sent = 0; sent < 20; sent++) client.send(flood);
    expect(await settled(() => client.socket.writableLength)).toBeGreaterThan(MIB);
  });

  test("replies are sent in the order in which they become ready", async () => {
    const disk = new WatchedExport();
    let release = (): void => {};
    disk.hold = new Promise((resolve) => {
      release = resolve;
    });
    await using client = await connected(await listen(disk));
    client.send(requestFrame({ type: READ, cookie: 1, length: 1 }));
    await expect.poll(() => disk.underWay).toBe(1);
    disk.hold = undefined;
    client.send(requestFrame({ type: READ, cookie: 2, length: 1 }));
    expect(await client.simpleReply(1)).toMatchObject({ cookie: 2n });
    release();
    expect(await client.simpleReply(1)).toMatchObject({ cookie: 1n });
  });

  test.each([
    { title: "closes", leave: (client: RawClient) => client.socket.end() },
    { title: "resets", leave: (client: RawClient) => client.socket.resetAndDestroy() },
  ])("reads for a client that $title without a goodbye are aborted", async ({ leave }) => {
    const disk = new WatchedExport();
    disk.hold = FOREVER;
    const server = await listen(disk, { address: { host: "127.0.0.1", port: 0 } });
    await using client = await connected(server);
    client.send(...reads(10, 4096));
    await expect.poll(() => disk.underWay).toBe(10);
    leave(client);
    await expect.poll(() => disk.aborted).toBe(10);
    await expect
      .poll(() => events.at(-1))
      .toMatchObject({ type: "disconnected", error: { code: "DISCONNECTED" } });
    expect(events.filter(({ type }) => type === "request-failed")).toEqual([]);
  });

  test("a client that vanishes in the middle of a frame does not affect others", async () => {
    const server = await listen(new WatchedExport(), { address: { host: "127.0.0.1", port: 0 } });
    await using other = await connected(server);
    for (const bytes of [0, 1, 3, 4, 20]) {
      await using client = await RawClient.connect(server);
      client.send(Buffer.concat([u32(3), optionFrame(GO, infoQuery("disk"))]).subarray(0, bytes));
      client.socket.resetAndDestroy();
    }
    other.send(requestFrame({ type: READ, length: 3 }));
    expect(await other.simpleReply(3)).toMatchObject({ error: 0 });
    await expect.poll(() => events.filter(({ type }) => type === "disconnected")).toHaveLength(5);
  });

  test.each([
    { title: "says nothing", frames: [] },
    {
      title: "starts an option and stops",
      frames: [u32(3), optionFrame(GO, infoQuery("disk")).subarray(0, 25)],
    },
  ])("a client that $title is disconnected in time", async ({ frames }) => {
    const server = await listen(new WatchedExport(), { handshakeTimeoutMs: 200 });
    await using client = await RawClient.connect(server);
    client.send(...frames);
    await client.rest();
    await expect.poll(() => events.at(-1)).toMatchObject({ error: { code: "HANDSHAKE_TIMEOUT" } });
  });

  test("a client that negotiates without end is disconnected in time", async () => {
    const server = await listen(new WatchedExport(), { handshakeTimeoutMs: 200 });
    await using client = await RawClient.greeted(server);
    const haggle = async () => {
      for (;;) await client.option(LIST);
    };
    await expect(haggle()).rejects.toThrow("the server hung up");
  });

  test("a client with an open export may be silent for longer than the handshake timeout", async () => {
    const server = await listen(new WatchedExport(), { handshakeTimeoutMs: 100 });
    await using client = await connected(server);
    await new Promise((resolve) => setTimeout(resolve, 300));
    client.send(requestFrame({ type: READ, length: 3 }));
    expect(await client.simpleReply(3)).toMatchObject({ error: 0 });
  });

  test("one connection too many is turned away, and accepted when there is room", async () => {
    const server = await listen(new WatchedExport(), { maxConnections: 2 });
    const first = await connected(server);
    await using second = await connected(server);
    await using third = await RawClient.connect(server);
    expect(await third.rest()).toHaveLength(0);
    expect(events).toContainEqual({ type: "turned-away" });

    await first[Symbol.asyncDispose]();
    await expect.poll(() => events.filter(({ type }) => type === "disconnected")).toHaveLength(1);
    await using fourth = await connected(server);
    fourth.send(requestFrame({ type: READ, length: 1 }));
    expect(await fourth.simpleReply(1)).toMatchObject({ error: 0 });
    second.send(requestFrame({ type: READ, length: 1 }));
    expect(await second.simpleReply(1)).toMatchObject({ error: 0 });
  });

  test("close disconnects, ends all reads, and removes the socket file", async () => {
    const disk = new WatchedExport();
    disk.hold = FOREVER;
    const server = await listen(disk);
    await using haggling = await RawClient.greeted(server);
    await using client = await connected(server);
    client.send(...reads(3, 10));
    await expect.poll(() => disk.underWay).toBe(3);
    await server.close();
    expect(disk.underWay).toBe(0);
    expect(await client.rest()).toHaveLength(0);
    expect(await haggling.rest()).toHaveLength(0);
    expect(events.filter(({ type }) => type === "disconnected")).toMatchObject([
      { error: { code: "SERVER_CLOSED" } },
      { error: { code: "SERVER_CLOSED" } },
    ]);
    await expect(access(socket())).rejects.toMatchObject({ code: "ENOENT" });
    await server.close();
  });

  test("an address that is in use makes listen fail", async () => {
    await listen(new WatchedExport());
    await expect(listen(new WatchedExport())).rejects.toMatchObject({ code: "EADDRINUSE" });
  });
});
