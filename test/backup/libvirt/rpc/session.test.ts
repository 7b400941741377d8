import { afterEach, describe, expect, it } from "vitest";
import { parseConnectionUri } from "../../../../src/backup/libvirt/hypervisor.js";
import { Libvirt } from "../../../../src/backup/libvirt/libvirt.js";
import { EVENT } from "../../../../src/backup/libvirt/rpc/events.js";
import * as remote from "../../../../src/backup/libvirt/rpc/procedures.js";
import { RpcSession } from "../../../../src/backup/libvirt/rpc/session.js";
import { XdrWriter } from "../../../../src/backup/libvirt/rpc/xdr.js";
import { domainOf, ScriptedLibvirt, UUID } from "../../../support/scripted-libvirt.js";

const CAPABILITIES = 7;
const ABORT = 164;
const DOMAIN = { name: "lab", uuid: UUID, id: -1 };
const LIMIT = { timeoutMs: 10_000 };

let server: ScriptedLibvirt;
afterEach(() => server[Symbol.asyncDispose]());

const text = (value: string): XdrWriter => new XdrWriter().string(value);
const address = () => parseConnectionUri(server.uri, { runtimeFolder: "/nowhere" }).daemon;

describe("a session", () => {
  const session = (graceMs?: number): RpcSession =>
    new RpcSession(async () => address(), { timeoutMs: 5000, graceMs });

  it("opens one connection for all that come at once, and another after it was lost", async () => {
    server = await ScriptedLibvirt.start({ [CAPABILITIES]: () => text("QEMU") });
    const one = session();
    const ask = () => one.call(remote.CONNECT_GET_CAPABILITIES, undefined, LIMIT);
    expect(await Promise.all([ask(), ask(), ask()])).toEqual(["QEMU", "QEMU", "QEMU"]);
    expect(server.clients).toHaveLength(1);
    await server.down();
    await server.up();
    expect(await Promise.all([ask(), ask(), ask()])).toEqual(["QEMU", "QEMU", "QEMU"]);
    expect(server.clients).toHaveLength(1);
    await one.close();
  });

  it("asks again what was lost in the middle, but does nothing twice", async () => {
    let asked = 0;
    server = await ScriptedLibvirt.start({
      [CAPABILITIES]: () => {
        asked += 1;
        return asked === 1 ? "hang up" : text("QEMU");
      },
      [ABORT]: () => "hang up",
    });
    const one = session();
    expect(await one.call(remote.CONNECT_GET_CAPABILITIES, undefined, LIMIT)).toBe("QEMU");
    const act = one.call(remote.DOMAIN_ABORT_JOB, { domain: DOMAIN }, LIMIT);
    await expect(act).rejects.toMatchObject({ name: "LostError" });
    expect(server.calls).toEqual([CAPABILITIES, CAPABILITIES, ABORT]);
    await one.close();
  });

  it("gives up opening when all that wait for it are aborted, and opens the next time", async () => {
    let greetings = 0;
    server = await ScriptedLibvirt.start({
      66: () => {
        greetings += 1;
        return greetings === 1 ? "silence" : new XdrWriter().int(1).int(0);
      },
      23: () => domainOf("lab"),
    });
    const one = session();
    const stops = [new AbortController(), new AbortController()];
    const waiting = stops.map(({ signal }) =>
      one.call(remote.DOMAIN_LOOKUP_BY_NAME, "lab", { ...LIMIT, signal }),
    );
    await expect.poll(() => greetings).toBe(1);
    const given = Promise.all(waiting.map((call) => expect(call).rejects.toThrow("enough")));
    for (const stop of stops) stop.abort(new Error("enough"));
    // It comes while that opening is being given up, and is no part of it.
    const late = waiting[1]?.catch(() => one.call(remote.DOMAIN_LOOKUP_BY_NAME, "lab", LIMIT));
    expect(await late).toMatchObject({ uuid: UUID });
    await given;
    await expect.poll(() => server.clients[0]?.socket.destroyed).toBe(true);
    expect(await one.call(remote.DOMAIN_LOOKUP_BY_NAME, "lab", LIMIT)).toMatchObject({ uuid: UUID });
    await one.close();
  });

  it("takes back what was registered for a listener that was given up meanwhile", async () => {
    const [REGISTER, DEREGISTER] = [316, 317];
    const gone: number[] = [];
    let answer = (): void => undefined;
    server = await ScriptedLibvirt.start({
      [REGISTER]: (_, call, client) => {
        answer = () => client.answer(call, new XdrWriter().int(41));
        return "silence";
      },
      [DEREGISTER]: (args) => {
        gone.push(args.int());
        return new XdrWriter();
      },
    });
    await using libvirt = new Libvirt({ connect: server.uri });
    const stop = new AbortController();
    const heard: unknown[] = [];
    const listening = libvirt
      .withSignal(stop.signal)
      .calls.listen(DOMAIN, [EVENT.lifecycle], (event) => heard.push(event));
    await expect.poll(() => server.calls).toEqual([REGISTER]);
    stop.abort(new Error("enough"));
    await expect(listening).rejects.toThrow("enough");
    answer();
    await expect.poll(() => gone).toEqual([41]);
    expect(heard).toEqual([]);
  });

  it("cleans up over another connection when libvirt owes the answers to all that was asked before", async () => {
    let [asked, aborted] = [0, 0];
    server = await ScriptedLibvirt.start({
      [CAPABILITIES]: () => {
        asked += 1;
        return "silence";
      },
      [ABORT]: (_args, _call, client) => {
        // The daemon of the first connection reads nothing more from it.
        if (client === server.clients[0]) return "silence";
        aborted += 1;
        return new XdrWriter();
      },
    });
    const one = session(100);
    const stop = new AbortController();
    const stuck = Array.from({ length: 4 }, () =>
      one.call(remote.CONNECT_GET_CAPABILITIES, undefined, { ...LIMIT, signal: stop.signal }),
    );
    await expect.poll(() => asked).toBe(4);
    // One waits already, and one comes later; neither may be made twice.
    const early = one.call(remote.DOMAIN_ABORT_JOB, { domain: DOMAIN }, LIMIT);
    const given = Promise.all(stuck.map((call) => expect(call).rejects.toThrow("enough")));
    stop.abort(new Error("enough"));
    await given;
    await early;
    await one.call(remote.DOMAIN_ABORT_JOB, { domain: DOMAIN }, LIMIT);
    expect([aborted, server.clients.length]).toEqual([2, 2]);
    await one.close();
  });

  it("stays with a daemon that answers all the same what nobody waits for any longer", async () => {
    const held: (() => void)[] = [];
    server = await ScriptedLibvirt.start({
      [CAPABILITIES]: (_, call, client) => {
        held.push(() => client.answer(call, text("QEMU")));
        return "silence";
      },
      [ABORT]: () => new XdrWriter(),
    });
    const one = session();
    const stop = new AbortController();
    const slow = Array.from({ length: 4 }, () =>
      one.call(remote.CONNECT_GET_CAPABILITIES, undefined, { ...LIMIT, signal: stop.signal }),
    );
    await expect.poll(() => held).toHaveLength(4);
    const early = one.call(remote.DOMAIN_ABORT_JOB, { domain: DOMAIN }, LIMIT);
    const given = Promise.allSettled(slow);
    stop.abort(new Error("enough"));
    await given;
    const late = one.call(remote.DOMAIN_ABORT_JOB, { domain: DOMAIN }, LIMIT);
    setTimeout(() => {
      for (const answer of held) answer();
    }, 50);
    await Promise.all([early, late]);
    expect(server.clients).toHaveLength(1);
    await one.close();
  });

  it("makes a call once that may not be made again, also if it was never sent", async () => {
    let asked = 0;
    server = await ScriptedLibvirt.start({
      [CAPABILITIES]: () => {
        asked += 1;
        return "silence";
      },
      [ABORT]: () => new XdrWriter(),
    });
    const one = session(100);
    const stop = new AbortController();
    const given = Promise.allSettled(
      Array.from({ length: 4 }, () =>
        one.call(remote.CONNECT_GET_CAPABILITIES, undefined, { ...LIMIT, signal: stop.signal }),
      ),
    );
    await expect.poll(() => asked).toBe(4);
    const act = one.call(remote.DOMAIN_ABORT_JOB, { domain: DOMAIN }, { ...LIMIT, again: false });
    const settled = expect(act).rejects.toMatchObject({ name: "LostError" });
    stop.abort(new Error("enough"));
    await given;
    await settled;
    expect(server.calls).not.toContain(ABORT);
    await one.close();
  });

  it("asks over another connection after four calls had no answer in time", async () => {
    server = await ScriptedLibvirt.start({ [CAPABILITIES]: () => "silence" });
    const one = session(100);
    const late = Array.from({ length: 4 }, () =>
      one.call(remote.CONNECT_GET_CAPABILITIES, undefined, { timeoutMs: 50 }),
    );
    for (const call of late) await expect(call).rejects.toMatchObject({ name: "LateError" });
    server.say({ [ABORT]: () => new XdrWriter() });
    await one.call(remote.DOMAIN_ABORT_JOB, { domain: DOMAIN }, LIMIT);
    expect(server.clients).toHaveLength(2);
    await one.close();
  });

  it("settles everything when it is closed", async () => {
    server = await ScriptedLibvirt.start({ [CAPABILITIES]: () => "silence" });
    const one = session();
    const asked = one.call(remote.CONNECT_GET_CAPABILITIES, undefined, LIMIT);
    const settled = expect(asked).rejects.toMatchObject({ name: "LostError" });
    await expect.poll(() => server.calls).toEqual([CAPABILITIES]);
    await one.close();
    await settled;
    expect(server.calls).toEqual([CAPABILITIES]);
    await one.close();
  });
});
