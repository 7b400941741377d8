import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { shareOf } from "../../bin/rehearsal-share.js";
import { recordRehearsal } from "../../src/backup/repository/rehearsal-record.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { nbdpull } from "../support/nbdpull.js";
import { createImage } from "../support/qemu-nbd.js";

it("gives each domain its turn: those first whose last rehearsal is longest ago", async () => {
  const folder = await mkdtemp(join(tmpdir(), "nbdpull-share-"));
  try {
    const [image, repo] = [join(folder, "vda.qcow2"), join(folder, "repo")];
    await createImage(image, { format: "qcow2", size: 65536 });
    const domains = ["db", "mail", "web"];
    for (const domain of domains) {
      const ran = await nbdpull("import", image, "--to", repo, "--domain", domain, "--disk", "vda");
      expect(ran.stderr).not.toMatch(/^nbdpull:/m);
    }
    const repository = await Repository.open(repo);
    // What one has left that was killed.
    const half = `..rehearsed.json.00000000-0000-4000-8000-000000000000`;
    const rehearsed = async (domain: string, at: string): Promise<void> => {
      const [id = ""] = await repository.pointIds(domain);
      await using point = await repository.holdPoint(domain, id);
      await point.create(half, "{", { sync: false });
      await recordRehearsal(point, { at, cameUp: true, sign: "agent", seconds: 1 });
      expect(await point.names()).not.toContain(half);
    };
    await rehearsed("db", "2026-11-22T05:00:00.000Z");
    expect(await shareOf(repository, domains, 10)).toEqual(["mail"]);
    expect(await shareOf(repository, domains, 67)).toHaveLength(3);
    const one = await nbdpull("rehearse", repo, "--share", "7");
    expect([one.code, one.stderr]).toEqual([2, expect.stringContaining("7%")]);
    await rehearsed("mail", "2026-11-15T05:00:00.000Z");
    await rehearsed("web", "2026-11-29T05:00:00.000Z");
    expect(await shareOf(repository, domains, 34)).toEqual(["mail", "db"]);
  } finally {
    await rm(folder, { recursive: true });
  }
});
