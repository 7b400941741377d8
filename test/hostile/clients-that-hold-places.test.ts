import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { NbdClient, type NbdServer, type NbdServerOptions } from "../../src/nbd/index.js";
import { infoQuery, optionFrame, RawClient, requestFrame, u32 } from "../nbd/server/raw-client.js";
import { connected, recordServers } from "../nbd/server/recorded-servers.js";
import { outputOf, testWith } from "../nbd/server/tools.js";
import { MemoryChain } from "../support/memory-chain.js";
import { startServing } from "../support/serving.js";

const GO = 7;
const READ = 0;
const MIB = 1024 * 1024;
/** Of the range for documentation: an address of this host that is not loopback's. */
const FOREIGN = "192.0.2.77";

async function open(path: string): Promise<Socket> {
  const socket = connect(path);
  socket.on("error", () => {});
  await once(socket, "connect");
  return socket;
}

describe("clients that hold places", () => {
  const { events, listen: listenWith } = recordServers();
  const disk = { size: 64 * MIB, read: async (_offset: number, length: number) => new Uint8Array(length) };
  const listen = (options: Partial<NbdServerOptions> = {}): Promise<NbdServer> => listenWith(disk, options);

  const faults = () =>
    events.flatMap((event) => (event.type === "disconnected" && event.error ? [event] : []));

  /** A client that comes again until it is let in. */
  async function admitted(server: NbdServer): Promise<RawClient> {
    const come = (): Promise<RawClient | undefined> => connected(server).catch(() => undefined);
    let client = await come();
    for (const deadline = Date.now() + 60_000; !client && Date.now() < deadline; client = await come()) {
      await sleep(100);
    }
    if (!client) throw new Error("nobody made room");
    return client;
  }

  it("lock nobody out of serve, though 64 of them are idle", async () => {
    await using chain = await MemoryChain.start(MIB);
    await chain.take();
    const path = join(chain.folder, "serve.sock");
    await using serving = await startServing(chain.repository.path, "--socket", path);
    const sockets: Socket[] = [];
    for (let count = 0; count < 64; count += 1) {
      const socket = await open(path);
      // The client's flags, and the choice of an export: no time-out of the handshake ends them.
      socket.write(Buffer.concat([u32(3), optionFrame(GO, infoQuery("vda"))]));
      // It is greeted, so it has its place.
      await once(socket, "data");
      sockets.push(socket);
    }
    const read = async (): Promise<void> => {
      await using client = await NbdClient.connect(serving.uris[0] ?? "");
      await client.read(0, Buffer.alloc(512));
    };
    // They have to be idle for five seconds.
    const outcome = (): Promise<string> => read().then(() => "read", String);
    await expect.poll(outcome, { interval: 500 }).toBe("read");
    await expect.poll(serving.stderr).toContain("another needed its place");
    for (const socket of sockets) socket.destroy();
  });

  it("leave when another needs the place: the one that was idle longest goes", async () => {
    const server = await listen({ maxConnections: 2, spareAfterMs: 800 });
    await using oldest = await connected(server);
    await sleep(300);
    await using busy = await connected(server);
    const asking = setInterval(() => busy.send(requestFrame({ type: READ, length: 1 })), 20);
    await sleep(900);
    await using third = await connected(server);
    third.send(requestFrame({ type: READ, length: 3 }));
    expect(await third.simpleReply(3)).toMatchObject({ error: 0 });
    expect(await oldest.rest()).toHaveLength(0);
    expect(faults()).toMatchObject([{ connection: 1, error: { code: "MADE_ROOM" } }]);

    // Now nobody is idle, so a newcomer has to leave.
    const other = setInterval(() => third.send(requestFrame({ type: READ, length: 1 })), 20);
    await sleep(300);
    await using fourth = await RawClient.connect(server);
    expect(await fourth.rest()).toHaveLength(0);
    expect(events).toContainEqual({ type: "turned-away", peer: undefined });
    clearInterval(asking);
    clearInterval(other);
  });

  it("leave too if they ask for much and take none of it", async () => {
    const server = await listen({ maxConnections: 1, spareAfterMs: 200 });
    await using greedy = await connected(server);
    for (let cookie = 0; cookie < 20; cookie += 1) {
      greedy.send(requestFrame({ type: READ, cookie, length: 16 * MIB }));
    }
    await using second = await admitted(server);
    second.send(requestFrame({ type: READ, length: 3 }));
    expect(await second.simpleReply(3)).toMatchObject({ error: 0 });
    expect(faults()).toMatchObject([{ connection: 1, error: { code: "MADE_ROOM" } }]);
  });

  it("leave after the idle limit, though they send bytes that are no request", async () => {
    const server = await listen({ idleTimeoutMs: 1000 });
    await using client = await connected(server);
    // Not a whole request within the test.
    const dribble = setInterval(() => client.send(Buffer.from([0x25])), 50);
    await using busy = await connected(server);
    for (let round = 0; round < 10 || faults().length === 0; round += 1) {
      busy.send(requestFrame({ type: READ, length: 3 }));
      expect(await busy.simpleReply(3)).toMatchObject({ error: 0 });
      await sleep(50);
    }
    expect(faults()).toMatchObject([{ connection: 1, error: { code: "IDLE" } }]);
    clearInterval(dribble);
  });

  it("stay without a limit, as a guest does that serve's disk lies below", async () => {
    const server = await listen({ idleTimeoutMs: Number.POSITIVE_INFINITY, spareAfterMs: 40 });
    await using client = await connected(server);
    await sleep(500);
    client.send(requestFrame({ type: READ, length: 3 }));
    expect(await client.simpleReply(3)).toMatchObject({ error: 0 });
    expect(faults()).toEqual([]);
  });

  testWith("ip")("from one host get only their share, and take it from each other", async () => {
    await outputOf("ip", "address", "replace", `${FOREIGN}/32`, "dev", "lo");
    try {
      const server = await listen({
        address: { host: "0.0.0.0", port: 0 },
        ...{ maxConnections: 4, maxConnectionsPerPeer: 2, spareAfterMs: 200 },
      });
      const port = Number(new URL(server.uri("")).port);
      const attack = async (): Promise<Socket> => {
        const socket = connect({ host: FOREIGN, port, localAddress: FOREIGN });
        socket.on("error", () => {});
        await once(socket, "connect");
        return socket;
      };
      await using honest = await connected(server);
      const first = await attack();
      const second = await attack();
      const third = await attack();
      await once(third.resume(), "close");
      await expect.poll(() => events).toContainEqual({ type: "turned-away", peer: FOREIGN });
      await sleep(500);
      // All are idle now, and there is a place left, but not for that host.
      const fourth = await attack();
      await once(first.resume(), "close");
      honest.send(requestFrame({ type: READ, length: 3 }));
      expect(await honest.simpleReply(3)).toMatchObject({ error: 0 });
      for (const socket of [second, fourth]) socket.destroy();
    } finally {
      await outputOf("ip", "address", "delete", `${FOREIGN}/32`, "dev", "lo");
    }
  });

  /** A client with a reply of 32 MiB to read, and one that waits for room. */
  async function oneWaitsForTheOther(stallTimeoutMs: number) {
    const server = await listen({ maxReplyBytes: 32 * MIB, stallTimeoutMs });
    const slow = await connected(server);
    slow.send(requestFrame({ type: READ, cookie: 1, length: 32 * MIB }));
    await sleep(50);
    const waiting = await connected(server);
    waiting.send(requestFrame({ type: READ, cookie: 2, length: 3 }));
    return { slow, waiting };
  }

  it("may be slow: one that reads a large part for longer than the time-out is not disconnected", async () => {
    const { slow, waiting } = await oneWaitsForTheOther(800);
    let left = 16 + 32 * MIB;
    const started = Date.now();
    while (left > 0) {
      const bytes = await slow.read(Math.min(left, MIB / 2));
      left -= bytes.length;
      await sleep(20);
    }
    expect(Date.now() - started).toBeGreaterThan(1000);
    expect(await waiting.simpleReply(3)).toMatchObject({ error: 0 });
    expect(faults()).toEqual([]);
    for (const client of [slow, waiting]) await client[Symbol.asyncDispose]();
  });

  it("may not be so slow that others wait for ever", async () => {
    const { slow, waiting } = await oneWaitsForTheOther(300);
    const sip = setInterval(() => slow.socket.read(1), 20);
    expect(await waiting.simpleReply(3)).toMatchObject({ error: 0 });
    clearInterval(sip);
    expect(faults()).toMatchObject([{ connection: 1, error: { code: "STALLED" } }]);
    for (const client of [slow, waiting]) await client[Symbol.asyncDispose]();
  });
});
