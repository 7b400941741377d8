import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { HeldFolder } from "../../../src/backup/host/held-folder.js";
import { DomainRun } from "../../../src/backup/libvirt/domain-run.js";
import { Libvirt } from "../../../src/backup/libvirt/libvirt.js";
import { XdrWriter } from "../../../src/backup/libvirt/rpc/xdr.js";
import { waitForSign } from "../../../src/backup/live/signs-of-life.js";
import { ScriptedLibvirt, UUID } from "../../support/scripted-libvirt.js";

const [GET_STATE, GET_FSINFO, GET_ADDRESSES] = [212, 349, 353];
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
    const watched = { libvirt, run, domain, folder, serialLog: "serial.log", signal: end.signal };
    const sign = { kind: "agent" } as const;
    expect(await waitForSign({ ...watched, sign, withinMs: 600 })).toBe(
      "its agent did not answer within 1 s",
    );
    const interrupted = waitForSign({ ...watched, sign, withinMs: 60_000 });
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
    const watched = { libvirt, run, domain, folder, serialLog: "serial.log", signal: undefined };
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
