import { cp, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { Repository } from "../../src/backup/repository/repository.js";
import { BackupLab } from "../support/backup-lab.js";
import { describeWithLibvirt } from "../support/libvirt-lab.js";
import { type Ran, runNbdpull } from "../support/nbdpull.js";

await describeWithLibvirt("a repository with the id of another", () => {
  it("doesn't lose that one its checkpoints; a repository that was moved keeps them", async () => {
    await using guest = await BackupLab.start();
    const env = { NBDPULL_STATE_FOLDER: join(guest.folder, "state") };
    guest.start = { env };
    const { checkpoint } = await guest.take();
    const backUpTo = async (to: string, ...more: string[]): Promise<Ran> => {
      const args = ["backup", guest.lab.domain, "--to", to, "--scratch", guest.scratch, "--json", ...more];
      return await runNbdpull(args, { env });
    };
    const refused = { error: { code: "E_REPOSITORY_MOVED", recorded: guest.repo } };

    // No points in it need the checkpoint, so a backup to it would delete it.
    const { id } = await Repository.open(guest.repo);
    for (const [name, itsId] of [
      ["same", id],
      ["alike", `${id.slice(0, 8)}-0000-4000-8000-000000000000`],
    ] as const) {
      const forged = await Repository.openOrCreate(join(guest.folder, name));
      const mark = { format: "nbdpull-repository", version: 1, id: itsId };
      await writeFile(join(forged.path, "nbdpull.json"), JSON.stringify(mark));
      const ran = await backUpTo(forged.path);
      expect([name, ran.code]).toEqual([name, name === "same" ? 4 : 0]);
      if (name === "same") expect(ran.json()).toMatchObject(refused);
      expect(await guest.checkpoints()).toContain(checkpoint);
    }

    await cp(guest.repo, join(guest.folder, "copy"), { recursive: true });
    expect((await backUpTo(join(guest.folder, "copy"))).json()).toMatchObject(refused);
    const moved = join(guest.folder, "moved");
    await rename(guest.repo, moved);
    expect((await backUpTo(moved)).json()).toMatchObject(refused);
    const ran = await backUpTo(moved, "--moved");
    expect([ran.code, ran.json()]).toMatchObject([0, { level: "incremental" }]);
    expect((await backUpTo(moved)).code).toBe(0);
    await guest.expectNothingLeft();
  });
});
