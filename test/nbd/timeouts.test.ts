import { describe, expect, it } from "vitest";
import { NbdClient, type NbdEvent } from "../../src/nbd/index.js";
import { replying, whole } from "../support/mock-replies.js";
import { handshake, MockServer } from "../support/mock-server.js";
import { pattern } from "./servers.js";

describe("a silent server", () => {
  it("is given up only while a request is pending", async () => {
    await using mock = await replying(async (r) => {
      await new Promise((resolve) => setTimeout(resolve, r.offset === 0 ? 10 : 10_000));
      return whole(r);
    });
    await using client = await NbdClient.connect(mock.uri, { idleTimeoutMs: 100 });
    await client.read(0, Buffer.alloc(512));
    await new Promise((resolve) => setTimeout(resolve, 250));
    await client.read(0, Buffer.alloc(512));
    const before = Date.now();
    await expect(client.read(512, Buffer.alloc(512))).rejects.toMatchObject({ code: "NBD_IDLE_TIMEOUT" });
    // It would be answered after ten seconds.
    expect(Date.now() - before).toBeLessThan(9000);
  });

  it("is not the same as a slow one", async () => {
    await using mock = await replying(async (r, peer) => {
      const bytes = whole(r);
      for (let at = 0; at < bytes.length; at += 100) {
        peer.send(bytes.subarray(at, at + 100));
        await new Promise((resolve) => setTimeout(resolve, 30));
      }
      return undefined;
    });
    await using client = await NbdClient.connect(mock.uri, { idleTimeoutMs: 120 });
    await client.read(0, Buffer.alloc(1024));
  });

  it("doesn't prevent a client from closing soon", async () => {
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer);
      await new Promise(() => {});
    });
    const client = await NbdClient.connect(mock.uri);
    const before = Date.now();
    await client.close();
    await client.close();
    expect(Date.now() - before).toBeLessThan(25_000);
    await expect(client.read(0, Buffer.alloc(1))).rejects.toMatchObject({ code: "NBD_CLOSED" });
  });

  it("is waited for by a closing client with a pending request", async () => {
    await using mock = await replying(async (r) => {
      await new Promise((resolve) => setTimeout(resolve, 20));
      return whole(r);
    });
    const client = await NbdClient.connect(mock.uri);
    const target = Buffer.alloc(512);
    const reading = client.read(512, target);
    await client.close();
    await reading;
    expect(target.equals(pattern(512, 512))).toBe(true);
  });
});

describe("a request that is never answered", () => {
  /** Answers all but the first request. */
  const forgetful = () => {
    let count = 0;
    return replying((r) => (count++ === 0 ? undefined : whole(r)));
  };

  it("ends the connection in time, whatever other traffic it has", async () => {
    await using mock = await forgetful();
    await using client = await NbdClient.connect(mock.uri, { requestTimeoutMs: 120, idleTimeoutMs: 60_000 });
    const before = Date.now();
    const forgotten = client.read(0, Buffer.alloc(512)).catch((error: unknown) => error);
    let others = 0;
    const busy = (async () => {
      while (true) {
        await client.read(512, Buffer.alloc(512));
        others += 1;
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    })();
    const ended = busy.catch((error: unknown) => error);
    expect(await forgotten).toMatchObject({
      name: "ConnectionError",
      code: "NBD_REQUEST_TIMEOUT",
      message: expect.stringContaining("120 ms"),
    });
    expect(Date.now() - before).toBeGreaterThanOrEqual(115);
    expect(Date.now() - before).toBeLessThan(50_000);
    expect(others).toBeGreaterThan(2);
    expect(await ended).toMatchObject({ code: "NBD_REQUEST_TIMEOUT" });
    expect(client.connections).toBe(0);
  });

  it("is sent again over a new connection if reconnecting is on", async () => {
    await using mock = await forgetful();
    const events: NbdEvent[] = [];
    await using client = await NbdClient.connect(mock.uri, {
      requestTimeoutMs: 60,
      reconnect: { delayMs: 1 },
      onEvent: (event) => events.push(event),
    });
    const target = Buffer.alloc(4096);
    await client.read(0, target);
    expect(target.equals(pattern(0, 4096))).toBe(true);
    expect(events).toMatchObject([
      { type: "opened" },
      { type: "lost", error: { code: "NBD_REQUEST_TIMEOUT" } },
      { type: "waiting", error: { code: "NBD_REQUEST_TIMEOUT" } },
      { type: "opened" },
      { type: "back" },
    ]);
  });

  it("is timed from when it was sent, not while it waits for its turn", async () => {
    await using mock = await replying(async (r) => {
      await new Promise((resolve) => setTimeout(resolve, 5));
      return whole(r);
    });
    await using client = await NbdClient.connect(mock.uri, { requestTimeoutMs: 700 });
    const reads = Array.from({ length: 300 }, (_, index) => client.read(index * 512, Buffer.alloc(512)));
    await Promise.all(reads);
  });

  it("does not hold its place for ever after it was aborted", async () => {
    await using mock = await forgetful();
    await using client = await NbdClient.connect(mock.uri, { requestTimeoutMs: 500 });
    const signal = AbortSignal.timeout(5);
    await expect(client.read(0, Buffer.alloc(512), { signal })).rejects.toMatchObject({
      code: "NBD_ABORTED",
    });
    await client.read(512, Buffer.alloc(512));
    expect(client.connections).toBe(1);
    await expect.poll(() => client.connections).toBe(0);
  });

  it("is not assumed when the client's own process was busy", async () => {
    await using mock = await replying(whole);
    await using client = await NbdClient.connect(mock.uri, { requestTimeoutMs: 40, idleTimeoutMs: 40 });
    const reading = client.read(0, Buffer.alloc(512));
    await new Promise((resolve) => setTimeout(resolve, 1));
    const until = Date.now() + 150;
    while (Date.now() < until);
    await reading;
  });
});
