import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { describeWithLibvirt } from "../support/libvirt-lab.js";
import { nbdpull, type Ran, runNbdpull } from "../support/nbdpull.js";

/** The order matters: the points go in the second test, and what stays of their checkpoints in the last. */
await describeWithLibvirt("nbdpull forget", () => {
  let guest: BackupLab;
  let beside: string;

  beforeAll(async () => {
    guest = await BackupLab.start();
    guest.start = { env: { NBDPULL_STATE_FOLDER: join(guest.folder, "state") } };
    beside = join(guest.folder, "beside");
    await guest.take();
    await guest.take();
    expectExit(await guest.run("--to", beside), 0);
  });

  afterAll(async () => {
    await guest[Symbol.asyncDispose]();
  });

  function forget(repo: string, ...more: readonly string[]): Promise<Ran> {
    return runNbdpull(["forget", repo, guest.lab.domain, "--json", ...more], guest.start);
  }

  it("tells which checkpoints would go", async () => {
    const ours = (await guest.points()).map(({ checkpoint }) => checkpoint);
    expect(ours).toHaveLength(2);
    const tried = await forget(guest.repo, "--dry-run");
    expect([tried.code, tried.json()]).toMatchObject([0, { domains: [{ checkpoints: ours }] }]);
    expect(await guest.checkpoints()).toHaveLength(3);
    expect(await guest.points()).toHaveLength(2);
  });

  it("deletes the checkpoints that this host has made for the repository, and no others", async () => {
    const ours = (await guest.points()).map(({ checkpoint }) => checkpoint);
    const others = (await guest.checkpoints()).filter((name) => !ours.includes(name));
    expectExit(await forget(guest.repo, "--force"), 0);
    expect(await guest.checkpoints()).toEqual(others);
    expect((await nbdpull("points", guest.repo)).stdout).toContain("no restore points");
    // The other repository's chain goes on.
    const next = await guest.run("--to", beside);
    expectExit(next, 0);
    expect(next.json()).toMatchObject({ level: "incremental" });
  });

  it("says what is left of a domain that is off, and deletes it once that runs", async () => {
    const checkpoints = await guest.checkpoints();
    await guest.lab.powerOff();
    const off = await forget(beside, "--force", "--strict");
    expectExit(off, 5);
    expect(off.stderr).toMatch(/its checkpoints stay: .* is off.*--checkpoints/);
    await guest.lab.powerOn();
    expect(await guest.checkpoints()).toEqual(checkpoints);
    const ran = await forget(beside, "--checkpoints", "--force");
    expect([ran.code, ran.json()]).toMatchObject([0, { checkpoints }]);
    expect(await guest.checkpoints()).toEqual([]);
  });
});
