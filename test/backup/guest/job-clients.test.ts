/** The end of a job whose clients have lost their connections. */
import { expect, it } from "vitest";
import { JobClients } from "../../../src/backup/guest/job-clients.js";
import { NbdClient } from "../../../src/nbd/index.js";
import { handshake, MockServer, type Peer } from "../../support/mock-server.js";

/** A handshake that has ended would be waited for for five seconds, which a busy machine can take for nothing. */
const TIMED = { retry: 3 };
const PATIENT = { withinMs: 60_000, delayMs: 1, maxDelayMs: 5 };

/** Hangs up on the first client when it asks for something, and leaves the others to `meet`. */
function losing(meet: (peer: Peer) => Promise<void>): Promise<MockServer> {
  return MockServer.start(async (peer, index) => {
    if (index > 0) return await meet(peer);
    await handshake(peer);
    await peer.request();
  });
}

/** Reads from a new client until it has lost its connection and `isMet`. */
async function lose(
  mock: MockServer,
  isMet: () => boolean,
  reconnect = PATIENT,
): Promise<{ client: NbdClient; outcome: Promise<unknown> }> {
  const client = await NbdClient.connect(mock.uri, { reconnect });
  const outcome = client.read(0, Buffer.alloc(512)).catch((error: unknown) => error);
  await expect.poll(isMet).toBe(true);
  return { client, outcome };
}

it("a job is ended only when the handshake of a client that reconnects is over", async () => {
  const order: string[] = [];
  let goOn: (() => void) | undefined;
  await using mock = await losing(async (peer) => {
    await new Promise<void>((resolve) => {
      goOn = resolve;
    });
    await handshake(peer);
    order.push("handshake");
    await peer.gone();
    order.push("gone");
  });
  const { client, outcome } = await lose(mock, () => goOn !== undefined);
  const clients = new JobClients();
  clients.all.push(client);
  const ended = clients.outlive(async () => {
    order.push(`end with ${client.connections}`);
  });
  expect(await outcome).toMatchObject({ code: "NBD_CLOSED" });
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(order).toEqual([]);
  goOn?.();
  await ended;
  await expect.poll(() => order).toEqual(["handshake", "end with 1", "gone"]);
  expect(mock.connections).toBe(2);
});

it("a job is ended at once where a client only waits before its next attempt", TIMED, async () => {
  let refused = 0;
  await using mock = await losing(async () => {
    refused += 1;
  });
  const reconnect = { withinMs: 60_000, delayMs: 50_000, maxDelayMs: 50_000 };
  const { client, outcome } = await lose(mock, () => refused === 1, reconnect);
  const clients = new JobClients();
  clients.all.push(client);
  const began = performance.now();
  await clients.outlive(async () => undefined);
  expect(performance.now() - began).toBeLessThan(4000);
  expect(await outcome).toMatchObject({ code: "NBD_CLOSED" });
  expect(mock.connections).toBe(2);
});

it("a client that makes no connections any more hangs up in a handshake that doesn't end", async () => {
  let met = 0;
  let left = 0;
  await using mock = await losing(async (peer) => {
    met += 1;
    await peer.gone();
    left += 1;
  });
  const { client } = await lose(mock, () => met === 1);
  client.stopConnecting(100);
  const began = performance.now();
  await client.idle();
  expect(performance.now() - began).toBeGreaterThan(80);
  await expect.poll(() => left).toBe(1);
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect([client.connections, mock.connections]).toEqual([0, 2]);
  await client.close();
});

it("a client that makes no connections any more uses the living ones, and replaces none", async () => {
  await using mock = await losing(async () => undefined);
  const client = await NbdClient.connect(mock.uri, { reconnect: PATIENT });
  client.stopConnecting(1000);
  expect(client.connections).toBe(1);
  const reading = client.read(0, Buffer.alloc(512));
  await expect(reading).rejects.toMatchObject({ code: "NBD_CLOSED_BY_SERVER" });
  await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({ code: "NBD_CLOSED" });
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(mock.connections).toBe(1);
  await client.close();
});

it("a job is ended only when the first handshake of a client is over", async () => {
  const order: string[] = [];
  let goOn: (() => void) | undefined;
  await using mock = await MockServer.start(async (peer) => {
    await new Promise<void>((resolve) => {
      goOn = resolve;
    });
    await handshake(peer);
    order.push("handshake");
    await peer.gone();
    order.push("gone");
  });
  const clients = new JobClients();
  const opening = NbdClient.connect(mock.uri);
  clients.isOpening(opening);
  const kept = opening.then((client) => clients.all.push(client));
  await expect.poll(() => goOn !== undefined).toBe(true);
  const ended = clients.outlive(async () => {
    order.push(`end with ${clients.all.length}`);
  });
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(order).toEqual([]);
  goOn?.();
  await Promise.all([ended, kept]);
  await expect.poll(() => order).toEqual(["handshake", "end with 1", "gone"]);
});

it("a job is not kept from its end by a client that can't be opened", TIMED, async () => {
  const clients = new JobClients();
  clients.isOpening(NbdClient.connect("nbd+unix:///x?socket=/nowhere/nbd.sock"));
  const began = performance.now();
  await clients.outlive(async () => undefined);
  expect(performance.now() - began).toBeLessThan(4000);
});

it("a job is ended only when a client is open that was begun to be opened while another one was", async () => {
  const clients = new JobClients();
  const order: string[] = [];
  const opening = async (name: string): Promise<void> => {
    await new Promise((resolve) => setTimeout(resolve, 20));
    order.push(name);
  };
  const first = opening("first").then(() => clients.isOpening(opening("second")));
  clients.isOpening(first);
  await clients.outlive(async () => {
    order.push("end");
  });
  expect(order).toEqual(["first", "second", "end"]);
});

it("a line that answers no more is cut off at its far end, before the job is ended", async () => {
  const order: string[] = [];
  let cut: (() => void) | undefined;
  // Says nothing, and hears of no hang-up: only what is done at its own end ends it.
  await using mock = await MockServer.start(async () => {
    await new Promise<void>((resolve) => {
      cut = resolve;
    });
    order.push("gone");
  });
  const clients = new JobClients(100);
  const opening = NbdClient.connect(mock.uri);
  clients.isOpening(opening);
  await expect.poll(() => cut !== undefined).toBe(true);
  clients.severThere = async () => {
    order.push("severed");
    cut?.();
  };
  await clients.outlive(async () => {
    order.push("end");
  });
  await expect(opening).rejects.toThrow();
  expect(order).toEqual(["severed", "gone", "end"]);

  const healthy = new JobClients(100);
  healthy.severThere = () => Promise.reject(new Error("nothing was to be severed"));
  healthy.isOpening(Promise.resolve());
  await healthy.outlive(async () => undefined);
});
