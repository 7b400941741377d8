import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { whileFrozen } from "../../../src/backup/guest/freeze.js";
import { JobFolder } from "../../../src/backup/guest/job-folder.js";
import { parseDomain } from "../../../src/backup/libvirt/documents/domain-xml.js";
import { Libvirt } from "../../../src/backup/libvirt/libvirt.js";
import { XdrWriter } from "../../../src/backup/libvirt/rpc/xdr.js";
import { ScriptedLibvirt } from "../../support/scripted-libvirt.js";
import { DOMAIN } from "../libvirt/dumps.js";

const FREEZE = 335;
const THAW = 336;

it("begins no job if the agent found nothing to freeze, and thaws, since its hooks have run", async () => {
  await using server = await ScriptedLibvirt.start({
    [FREEZE]: () => new XdrWriter().int(0),
    [THAW]: () => new XdrWriter().int(0),
  });
  await using libvirt = new Libvirt({ connect: server.uri });
  const domain = parseDomain(DOMAIN);
  const parent = await mkdtemp(join(tmpdir(), "nbdpull-frozen-"));
  try {
    const repositoryId = "1a2b3c4d-0000-4000-8000-000000000000";
    const folder = JobFolder.at(parent, { repositoryId, domainUuid: domain.uuid });
    await folder.claim(undefined);
    let hasBegun = false;
    const begin = async (): Promise<void> => {
      hasBegun = true;
    };
    const freezing = whileFrozen({ libvirt, domain }, folder, ["/srv"], begin);
    await expect(freezing).rejects.toMatchObject({ code: "E_NO_MOUNTPOINT" });
    expect([hasBegun, await folder.isMarkedFrozen(domain)]).toEqual([false, false]);
    expect(server.calls).toEqual([FREEZE, THAW]);
  } finally {
    await rm(parent, { recursive: true });
  }
});
