import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { HeldFolder } from "../../../src/backup/host/held-folder.js";
import { DomainRun } from "../../../src/backup/libvirt/domain-run.js";
import { Libvirt } from "../../../src/backup/libvirt/libvirt.js";
import { XdrWriter } from "../../../src/backup/libvirt/rpc/xdr.js";
import { waitForSign } from "../../../src/backup/live/signs-of-life.js";
import { ScriptedLibvirt, UUID } from "../../support/scripted-libvirt.js";

const [GET_STATE, GET_FSINFO] = [212, 349];
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
