/** A connection to libvirt, and daemons that misbehave: a clear error or patience, nothing lost, no hang. */
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, describe, expect, it } from "vitest";
import { parseConnectionUri } from "../../../../src/backup/libvirt/hypervisor.js";
import type { Keepalive, RpcConnection } from "../../../../src/backup/libvirt/rpc/connection.js";
import { openConnection } from "../../../../src/backup/libvirt/rpc/open.js";
import { encodePacket, type Packet, PROGRAM } from "../../../../src/backup/libvirt/rpc/packets.js";
import * as remote from "../../../../src/backup/libvirt/rpc/procedures.js";
import { XdrWriter } from "../../../../src/backup/libvirt/rpc/xdr.js";
import {
  type Answer,
  type Client,
  reply,
  type Script,
  ScriptedLibvirt,
  UUID,
} from "../../../support/scripted-libvirt.js";

const CAPABILITIES = 7;
const BACKUP_XML = 422;
const DOMAIN = { name: "lab", uuid: UUID, id: -1 };
const LIMIT = { timeoutMs: 10_000 };

let server: ScriptedLibvirt;
afterEach(() => server[Symbol.asyncDispose]());

const text = (value: string): XdrWriter => new XdrWriter().string(value);
const address = () => parseConnectionUri(server.uri, { runtimeFolder: "/nowhere" }).daemon;

async function open(script: Script, keepalive?: Keepalive): Promise<RpcConnection> {
  server = await ScriptedLibvirt.start(script);
  return await openConnection(address(), {
    ...{ timeoutMs: 10_000, signal: new AbortController().signal, keepalive },
  });
}

/** Of a libvirt that answers what it is asked of its capabilities only when the test lets it. */
async function openHolding(): Promise<{ connection: RpcConnection; held: readonly (() => void)[] }> {
  const held: (() => void)[] = [];
  const connection = await open({
    [CAPABILITIES]: (_, call, client) => {
      held.push(() => client.answer(call, text("QEMU")));
      return "silence";
    },
    [BACKUP_XML]: () => text("sent"),
  });
  return { connection, held };
}

const capabilitiesOf = (connection: RpcConnection): Promise<string> =>
  connection.call(remote.CONNECT_GET_CAPABILITIES, undefined, LIMIT);

describe("a connection to libvirt", () => {
  it("gives each call its own answer, in whatever order and pieces they come", async () => {
    const held: (() => void)[] = [];
    const connection = await open({
      [CAPABILITIES]: (_, call, client) => {
        held.push(() => client.answer(call, text(`answer to ${call.serial}`)));
        return "silence";
      },
      [BACKUP_XML]: async (_, call, { socket }): Promise<Answer> => {
        for (const byte of reply(call, text("in pieces"))) {
          socket.write(Buffer.from([byte]));
          await sleep(1);
        }
        return "silence";
      },
    });
    const calls = [capabilitiesOf(connection), capabilitiesOf(connection), capabilitiesOf(connection)];
    expect(await connection.call(remote.DOMAIN_BACKUP_GET_XML_DESC, { domain: DOMAIN }, LIMIT)).toBe(
      "in pieces",
    );
    for (const answer of held.reverse()) answer();
    const serials = (await Promise.all(calls)).map((answer) => Number(answer.slice("answer to ".length)));
    expect(serials).toEqual([...serials].sort((a, b) => a - b));
    expect(new Set(serials).size).toBe(3);
    connection.close();
  });

  it("has four calls under way at most: libvirt reads nothing more after the fifth", async () => {
    let [now, most] = [0, 0];
    const connection = await open({
      [CAPABILITIES]: async () => {
        now += 1;
        most = Math.max(most, now);
        await sleep(20);
        now -= 1;
        return text("QEMU");
      },
    });
    // The script answers the calls of one read in turn, so each call is a read of its own.
    const calls = Array.from({ length: 9 }, async (_, i) => {
      await sleep(3 * i);
      return await capabilitiesOf(connection);
    });
    expect(await Promise.all(calls)).toEqual(Array(9).fill("QEMU"));
    expect(most).toBeLessThanOrEqual(4);
    connection.close();
  });

  it("heeds signal and limit of a call that waits for others, which is never sent then", async () => {
    const { connection, held } = await openHolding();
    const calls = Array.from({ length: 4 }, () => capabilitiesOf(connection));
    await expect.poll(() => held).toHaveLength(4);
    const waiting = (options: { timeoutMs: number; signal?: AbortSignal }): Promise<string> =>
      connection.call(remote.DOMAIN_BACKUP_GET_XML_DESC, { domain: DOMAIN }, options);
    const stop = new AbortController();
    const stopped = waiting({ ...LIMIT, signal: stop.signal });
    stop.abort(new Error("enough"));
    await expect(stopped).rejects.toThrow("enough");
    await expect(waiting({ ...LIMIT, signal: stop.signal })).rejects.toThrow("enough");
    const message = "4 calls before it had no answer after 0.05 s";
    await expect(waiting({ timeoutMs: 50 })).rejects.toMatchObject({ message, wasSent: false });
    const next = waiting(LIMIT);
    for (const answer of held) answer();
    expect(await Promise.all(calls)).toEqual(Array(4).fill("QEMU"));
    expect(await next).toBe("sent");
    expect(server.calls).toEqual([...Array(4).fill(CAPABILITIES), BACKUP_XML]);
    connection.close();
  });

  it("sends no fifth call while libvirt works on four, also if nobody waits for some of them", async () => {
    const { connection, held } = await openHolding();
    const stop = new AbortController();
    const { signal } = stop;
    const given = Array.from({ length: 3 }, () =>
      connection.call(remote.CONNECT_GET_CAPABILITIES, undefined, { ...LIMIT, signal }),
    );
    const awaited = capabilitiesOf(connection);
    await expect.poll(() => held).toHaveLength(4);
    stop.abort(new Error("enough"));
    for (const call of given) await expect(call).rejects.toThrow("enough");
    const next = connection.call(remote.DOMAIN_BACKUP_GET_XML_DESC, { domain: DOMAIN }, LIMIT);
    await sleep(100);
    expect(server.calls).toEqual(Array(4).fill(CAPABILITIES));
    held[0]?.();
    expect(await next).toBe("sent");
    held[3]?.();
    expect(await awaited).toBe("QEMU");
    connection.close();
  });

  it("gives libvirt's errors by their numbers, with its text", async () => {
    const connection = await open({ [CAPABILITIES]: () => ({ refuse: 42, message: "Domain not found\n" }) });
    await expect(capabilitiesOf(connection)).rejects.toMatchObject({
      number: 42,
      message: "Domain not found",
    });
    connection.close();
  });

  it("waits no longer than it may, ends with the signal, and skips the answers that come later", async () => {
    const late: (() => void)[] = [];
    let asked = 0;
    const connection = await open({
      [CAPABILITIES]: (_, call, client) => {
        asked += 1;
        if (asked > 2) return text("QEMU");
        late.push(() => client.answer(call, text("too late")));
        return "silence";
      },
    });
    await expect(
      connection.call(remote.CONNECT_GET_CAPABILITIES, undefined, { timeoutMs: 50 }),
    ).rejects.toMatchObject({ name: "LateError", wasSent: true });
    const stop = new AbortController();
    const call = connection.call(remote.CONNECT_GET_CAPABILITIES, undefined, {
      ...LIMIT,
      signal: stop.signal,
    });
    await expect.poll(() => asked).toBe(2);
    stop.abort(new Error("enough"));
    await expect(call).rejects.toThrow("enough");
    for (const answer of late) answer();
    expect(await capabilitiesOf(connection)).toBe("QEMU");
    connection.close();
  });

  it("answers pings, and tells events to who listens", async () => {
    const connection = await open({ [CAPABILITIES]: () => text("QEMU") });
    const seen: unknown[] = [];
    const silence = connection.listen((event) => seen.push(event));
    const [client] = server.clients;
    client?.tell(1, new XdrWriter(), PROGRAM.keepalive);
    // An event of another kind, and one of QEMU's own program, which nobody asked for.
    client?.tell(319, new XdrWriter().int(1));
    client?.tell(318, new XdrWriter().int(1), 0x20008087);
    client?.tell(318, lifecycle(5, 1));
    await expect.poll(() => seen).toMatchObject([{ kind: "lifecycle", event: 5, detail: 1 }]);
    expect(server.told).toMatchObject([{ program: PROGRAM.keepalive, procedure: 2 }]);
    silence();
    client?.tell(318, lifecycle(2, 0));
    expect(await capabilitiesOf(connection)).toBe("QEMU");
    expect(seen).toHaveLength(1);
    connection.close();
  });

  it("takes a silent daemon for dead, but not one that answers its pings", async () => {
    const patience = { everyMs: 30, unanswered: 2 };
    const connection = await open({ [CAPABILITIES]: () => "silence" }, patience);
    const call = capabilitiesOf(connection);
    await expect(call).rejects.toMatchObject({
      name: "LostError",
      message: expect.stringContaining("silent"),
    });
    const pings = (): unknown => server.told.filter(({ program }) => program === PROGRAM.keepalive);
    await expect.poll(pings).toHaveLength(2);
    await server[Symbol.asyncDispose]();

    const other = await open({ [CAPABILITIES]: () => "silence" }, patience);
    const pongs = setInterval(() => server.clients[0]?.tell(2, new XdrWriter(), PROGRAM.keepalive), 20);
    const slow = other.call(remote.CONNECT_GET_CAPABILITIES, undefined, { timeoutMs: 300 });
    await expect(slow).rejects.toMatchObject({ name: "LateError" });
    expect(other.lost.aborted).toBe(false);
    clearInterval(pongs);
    other.close();
  });
});

it("keeps few answers for a daemon that sends pings and reads nothing", async () => {
  const connection = await open({});
  const { socket, tell } = server.clients[0] as Client;
  socket.pause();
  const ping = encodePacket({
    ...{ program: PROGRAM.keepalive, procedure: 1, type: 2, serial: 0, status: 0 },
    payload: Buffer.alloc(0),
  });
  const before = process.memoryUsage().rss;
  const flood = Buffer.concat(Array.from({ length: 10_000 }, () => ping));
  for (let round = 0; round < 30; round += 1) {
    await new Promise((resolve) => socket.write(flood, resolve));
  }
  expect(process.memoryUsage().rss - before).toBeLessThan(150 * 1024 ** 2);
  socket.resume();
  const seen: unknown[] = [];
  connection.listen((event) => seen.push(event));
  tell(318, lifecycle(5, 1));
  await expect.poll(() => seen).toHaveLength(1);
  // Those that were kept have come by now.
  await sleep(500);
  expect(server.told.length).toBeLessThan(100_000);
  connection.close();
});

function lifecycle(event: number, detail: number): XdrWriter {
  const uuid = Buffer.from(UUID.replaceAll("-", ""), "hex");
  return new XdrWriter().int(1).string("lab").fixed(uuid).int(1).int(event).int(detail);
}

describe("a daemon that talks nonsense", () => {
  it.each<[string, (call: Packet) => Answer]>([
    ["bytes that are no packet", () => Buffer.from("HTTP/1.1 400 Bad Request\r\n\r\n")],
    ["a packet of 4 GiB", () => Buffer.alloc(64, 0xff)],
    ["a packet of no length", () => Buffer.alloc(64)],
    ["an answer to a call that nobody made", (call) => reply({ ...call, serial: 99 }, text("x"))],
    ["an answer of another procedure", (call) => reply({ ...call, procedure: BACKUP_XML }, text("x"))],
    ["an answer of another program", (call) => reply({ ...call, program: 0x20008087 }, text("x"))],
    ["an answer of no status", (call) => reply(call, text("x"), 7)],
    [
      "a stream that nobody asked for",
      (call) => encodePacket({ ...call, type: 3, payload: Buffer.alloc(8) }),
    ],
    ["a call of its own", (call) => encodePacket({ ...call, payload: Buffer.alloc(8) })],
    ["an answer that ends too early", (call) => reply(call, new XdrWriter().int(10))],
    ["an answer with something behind it", (call) => reply(call, text("x").int(1))],
    ["an error that ends too early", (call) => reply(call, new XdrWriter().int(42), 1)],
    [
      "an event that ends too early",
      (call) => encodePacket({ ...call, procedure: 318, type: 2, payload: Buffer.alloc(4) }),
    ],
  ])("is left after %s", async (_, nonsense) => {
    const connection = await open({
      [CAPABILITIES]: (_args, call) => nonsense(call),
      [BACKUP_XML]: () => "silence",
    });
    const other = connection.call(remote.DOMAIN_BACKUP_GET_XML_DESC, { domain: DOMAIN }, LIMIT);
    const calls = await Promise.allSettled([capabilitiesOf(connection), other]);
    const left = { code: "E_LIBVIRT_ANSWER", message: expect.stringContaining("makes no sense") };
    expect(calls).toMatchObject([{ reason: left }, { reason: left }]);
    await expect(capabilitiesOf(connection)).rejects.toMatchObject(left);
    await expect.poll(() => server.clients[0]?.socket.destroyed).toBe(true);
  });

  it("is left if it hangs up in the middle of an answer", async () => {
    const connection = await open({
      [CAPABILITIES]: (_, call, { socket }) => {
        socket.end(reply(call, text("half of this")).subarray(0, 30));
        return "silence";
      },
    });
    await expect(capabilitiesOf(connection)).rejects.toMatchObject({ name: "LostError" });
  });
});

describe("opening a connection", () => {
  it.each<[string, Script, object]>([
    ["SASL alone is offered", { 66: () => new XdrWriter().int(1).int(1) }, { code: "E_LIBVIRT_SASL" }],
    [
      "an unknown authentication is offered",
      { 66: () => new XdrWriter().int(1).int(9) },
      { code: "E_LIBVIRT_SASL" },
    ],
    [
      "polkit refuses",
      {
        66: () => new XdrWriter().int(1).int(2),
        70: () => ({ refuse: 45, message: "authentication failed: no agent" }),
      },
      {
        code: "E_LIBVIRT_ACCESS",
        message: expect.stringMatching(/group libvirt.*sudo.*qemu:\/\/\/session/s),
      },
    ],
    [
      "access is denied",
      { 1: () => ({ refuse: 88, message: "access denied" }) },
      { code: "E_LIBVIRT_ACCESS" },
    ],
    [
      "it knows no such URI",
      { 1: () => ({ refuse: 5, message: "no connection driver" }) },
      { code: "E_LIBVIRT_URI" },
    ],
    [
      "the daemon behind it is down",
      { 1: () => ({ refuse: 38, message: "Failed to connect socket" }) },
      { name: "LostError" },
    ],
    ["it hangs up", { 66: () => "hang up" }, { name: "LostError" }],
    ["it says nothing", { 66: () => "silence" }, { name: "LateError", wasSent: false }],
    [
      "it is a web server",
      { 66: () => Buffer.from("HTTP/1.1 400\r\n\r\n".repeat(9)) },
      { code: "E_LIBVIRT_ANSWER" },
    ],
  ])("fails if %s", async (_, script, error) => {
    server = await ScriptedLibvirt.start(script);
    const signal = new AbortController().signal;
    await expect(openConnection(address(), { timeoutMs: 500, signal })).rejects.toMatchObject(error);
  });

  it("asks polkit where libvirt wants that", async () => {
    const asked: number[] = [];
    const connection = await open({
      66: () => new XdrWriter().int(2).int(1).int(2),
      70: (_, call) => {
        asked.push(call.procedure);
        return new XdrWriter().int(1);
      },
    });
    expect(asked).toEqual([70]);
    connection.close();
  });
});
