/**
 * The attack: another user makes the job's folder first, in /var/tmp where everybody may, and backups stop.
 */
import { chmod, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, expect, it } from "vitest";
import { JobFolder } from "../../src/backup/guest/job-folder.js";
import { Ssh } from "../../src/backup/host/ssh.js";
import { NO_ATTACKER } from "../support/attacker.js";
import { describeUnless } from "../support/tools.js";

const NOBODY = "65534";
const key = {
  repositoryId: "1a2b3c4d-0000-4000-8000-000000000000",
  domainUuid: "f00dcafe-0000-4000-8000-000000000000",
};
let parent: string;
beforeEach(async () => {
  parent = await mkdtemp(join(tmpdir(), "nbdpull-hostile-"));
  await chmod(parent, 0o1777);
});
afterEach(() => rm(parent, { recursive: true, force: true }));

/** As the attacker. */
async function asNobody(script: string): Promise<void> {
  const asUser = ["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"];
  await execa("setpriv", [...asUser, "sh", "-ec", script]);
}
const run = (id: number) => ({ id, name: "web", uuid: key.domainUuid });

describeUnless(NO_ATTACKER, "a job's folder whose name another user has taken", () => {
  it.each([
    ["a folder", (path: string) => `mkdir ${path}; echo '{}' > ${path}/owner.json; touch ${path}/frozen`],
    ["a file", (path: string) => `echo > ${path}`],
    ["a link to a folder of root's", (path: string) => `ln -s /root ${path}`],
  ])("gets a random end, and is found again after a backup was killed: %s", async (_, attack) => {
    const usual = JobFolder.at(parent, key);
    await asNobody(attack(usual.path));
    const folder = await JobFolder.find(parent, key);
    expect(basename(folder.path)).toMatch(/^nbdpull-1a2b3c4d-[0-9a-f]{12}-[0-9a-f]{8}$/);
    expect(await folder.livingOwner()).toBeUndefined();
    await folder.claim(undefined);
    await folder.markFrozen(run(7));
    // The attacker can make more, but not what root would believe.
    await asNobody(`mkdir ${usual.path}-00000000`);
    const next = await JobFolder.find(parent, key);
    expect(next.path).toBe(folder.path);
    expect(await next.isMarkedFrozen(run(7))).toBe(true);
    expect(await next.livingOwner()).toContain(String(process.pid));
    const note = JSON.parse(await readFile(next.file("owner.json"), "utf8")) as object;
    await writeFile(next.file("owner.json"), JSON.stringify({ ...note, pid: 2 ** 22 + 1 }));
    expect(await next.livingOwner()).toBeUndefined();
    await next.remove();
    // What the attacker made stays, and the next backup isn't stopped either.
    expect(await readdir(parent)).toHaveLength(2);
    expect((await JobFolder.find(parent, key)).path).not.toBe(usual.path);
  });

  it("gets a random end on this host too, if the job is on another", async () => {
    const ssh = new Ssh({ host: "elsewhere", settings: [] });
    const usual = JobFolder.at(parent, key, ssh);
    expect(usual.here).not.toBe(usual.path);
    await asNobody(`mkdir '${usual.here}'`);
    try {
      const found = await JobFolder.find(parent, key, ssh);
      expect(found.path).toBe(usual.path);
      expect(found.here.slice(usual.here.length)).toMatch(/^-[0-9a-f]{8}$/);
    } finally {
      await rm(usual.here, { recursive: true });
    }
  });

  it("has its usual name again once the name is free", async () => {
    const usual = JobFolder.at(parent, key);
    await asNobody(`mkdir ${usual.path}`);
    expect((await JobFolder.find(parent, key)).path).not.toBe(usual.path);
    await asNobody(`rmdir ${usual.path}`);
    expect((await JobFolder.find(parent, key)).path).toBe(usual.path);
  });
});
