import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { expect, it } from "vitest";
import { canConnect } from "../../../src/backup/host/can-connect.js";
import { HeldFolder } from "../../../src/backup/host/held-folder.js";
import { DomainRun } from "../../../src/backup/libvirt/domain-run.js";
import { Libvirt } from "../../../src/backup/libvirt/libvirt.js";
import { XdrWriter } from "../../../src/backup/libvirt/rpc/xdr.js";
import { waitForSign } from "../../../src/backup/live/signs-of-life.js";
import { ScriptedLibvirt, UUID } from "../../support/scripted-libvirt.js";

const [GET_STATE, GET_FSINFO, GET_ADDRESSES, NETWORK, BRIDGE] = [212, 349, 353, 46, 45];
const [LEASE, ARP] = [0, 2];
const RUNNING = new XdrWriter().int(1).int(1);

it("takes a guest whose agent hangs for one that did not come up, when the time is over", async () => {
  const path = await mkdtemp(join(tmpdir(), "nbdpull-signs-"));
  try {
    await using folder = await HeldFolder.open(path);
    await using server = await ScriptedLibvirt.start({
      [GET_STATE]: () => RUNNING,
      [GET_FSINFO]: () => "silence",
    });
    await using libvirt = new Libvirt({ connect: server.uri });
    const domain = { name: "web", uuid: UUID };
    const run = new DomainRun(libvirt, domain);
    const end = new AbortController();
    const watched = { libvirt, run, domain, folder, serialLog: "serial.log", network: undefined };
    const sign = { kind: "agent" } as const;
    const { signal } = end;
    expect(await waitForSign({ ...watched, sign, signal, withinMs: 600 })).toBe(
      "its agent did not answer within 1 s",
    );
    const interrupted = waitForSign({ ...watched, sign, signal, withinMs: 60_000 });
    end.abort(new Error("interrupted"));
    await expect(interrupted).rejects.toThrow("interrupted");
  } finally {
    await rm(path, { recursive: true });
  }
});

it("goes on waiting for an agent that babbles, and for a port that nothing listens on, and says so in the end", async () => {
  const path = await mkdtemp(join(tmpdir(), "nbdpull-signs-"));
  const listener = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => listener.once("listening", resolve));
  const { port } = listener.address() as { port: number };
  try {
    await using folder = await HeldFolder.open(path);
    let address: string | undefined;
    await using server = await ScriptedLibvirt.start({
      [GET_STATE]: () => RUNNING,
      [GET_FSINFO]: () => ({ refuse: 1, message: "internal error: cannot parse json" }),
      [GET_ADDRESSES]: () => {
        const cards = new XdrWriter().int(address === undefined ? 0 : 1);
        if (address === undefined) return cards;
        return cards.string("vnet0").optionalString(undefined).int(1).int(0).string(address).int(24);
      },
    });
    await using libvirt = new Libvirt({ connect: server.uri });
    const domain = { name: "web", uuid: UUID };
    const run = new DomainRun(libvirt, domain);
    const common = { libvirt, run, domain, folder, serialLog: "serial.log" };
    const watched = { ...common, network: undefined, signal: undefined };
    expect(await waitForSign({ ...watched, sign: { kind: "agent" }, withinMs: 600 })).toMatch(
      /answered what libvirt does not take .*cannot parse json.* within 1 s/,
    );
    const sign = { kind: "tcp", port } as const;
    expect(await waitForSign({ ...watched, sign, withinMs: 100 })).toMatch(/saw no address of it/);
    address = "127.0.0.1";
    expect(await waitForSign({ ...watched, sign, withinMs: 5000 })).toBeUndefined();
    listener.close();
    expect(await waitForSign({ ...watched, sign, withinMs: 100 })).toMatch(
      new RegExp(`nothing took connections to port ${port} of 127\\.0\\.0\\.1`),
    );
  } finally {
    listener.close();
    await rm(path, { recursive: true });
  }
});

/** A guest whose card has these addresses, on a network that is on the host's device `bridge`. */
async function trying(
  port: number,
  {
    bridge,
    withinMs,
    ...addresses
  }: { leased?: string[]; claimed?: string[]; bridge: string; withinMs: number },
): Promise<string | undefined> {
  await using folder = await HeldFolder.open(tmpdir());
  await using server = await ScriptedLibvirt.start({
    [GET_STATE]: () => RUNNING,
    [GET_ADDRESSES]: (args) => {
      // The domain: its name, its UUID and the number of its run.
      args.string();
      args.fixed(16);
      args.int();
      const source = args.int();
      const { leased = [], claimed } = addresses;
      // As libvirt 9.0 on a newer kernel.
      if (source === ARP && claimed === undefined) return { refuse: 1, message: "wrong nlmsg len" };
      const of: Record<number, string[]> = { [LEASE]: leased, [ARP]: claimed ?? [] };
      const list = of[source] ?? [];
      const card = new XdrWriter().int(1).string("vnet0").optionalString(undefined).int(list.length);
      return list.reduce((answer, address) => answer.int(0).string(address).int(0), card);
    },
    [NETWORK]: () => new XdrWriter().string("inside").fixed(Buffer.alloc(16)),
    [BRIDGE]: () => new XdrWriter().string(bridge),
  });
  await using libvirt = new Libvirt({ connect: server.uri });
  const domain = { name: "web", uuid: UUID };
  return await waitForSign({
    ...{ libvirt, domain, folder, serialLog: "serial.log", network: "inside", withinMs, signal: undefined },
    ...{ run: new DomainRun(libvirt, domain), sign: { kind: "tcp", port } },
  });
}

/** 127.0.0.2 and those that follow. */
const loopback = (count: number): string[] =>
  Array.from({ length: count }, (_, index) => `127.0.0.${index + 2}`);

it("connects to no address outside of the network that a guest claims by ARP, and to few of many", async () => {
  const listener = createServer().listen(0, "0.0.0.0");
  await new Promise((resolve) => listener.once("listening", resolve));
  const { port } = listener.address() as { port: number };
  try {
    const none = /saw no address of it/;
    const claimed = loopback(1);
    expect(await trying(port, { claimed, bridge: "nbdpull-none", withinMs: 0 })).toMatch(none);
    // This host's own, where this host would answer.
    expect(await trying(port, { claimed: ["127.0.0.1", "no address"], bridge: "lo", withinMs: 0 })).toMatch(
      none,
    );
    expect(await trying(port, { claimed, bridge: "lo", withinMs: 0 })).toBeUndefined();
  } finally {
    listener.close();
  }
  const tried = await trying(port, { leased: loopback(250), bridge: "lo", withinMs: 0 });
  expect(tried?.match(/127\.0\.0\.\d+/g)).toEqual(loopback(16));
});

it("waits no longer for many addresses where nothing answers than for one", async () => {
  // Takes no connection: the kernel does for two, and then answers no more.
  const script = `const { parentPort } = require("node:worker_threads");
    const server = require("node:net").createServer().listen({ port: 0, host: "0.0.0.0", backlog: 1 }, () => {
      parentPort.postMessage(server.address().port);
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
    });`;
  const worker = new Worker(script, { eval: true });
  try {
    const port = await new Promise<number>((resolve) => worker.once("message", resolve));
    const where = { host: "127.0.0.1", port, timeoutMs: 1000, signal: undefined };
    while (await canConnect(where));
    const began = performance.now();
    const tried = await trying(port, { leased: loopback(16), bridge: "lo", withinMs: 100 });
    expect(tried).toMatch(/nothing took connections/);
    // One after the other they would take more than a minute.
    expect(performance.now() - began).toBeLessThan(40_000);
  } finally {
    await worker.terminate();
  }
});
