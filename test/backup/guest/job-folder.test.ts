import { lchown, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { canBeSameRun } from "../../../src/backup/guest/frozen-mark.js";
import { JobFolder } from "../../../src/backup/guest/job-folder.js";

const key = {
  repositoryId: "1a2b3c4d-0000-4000-8000-000000000000",
  domainUuid: "f00dcafe-0000-4000-8000-000000000000",
};
let parent: string;
let folder: JobFolder;
beforeEach(async () => {
  parent = await mkdtemp(join(tmpdir(), "nbdpull-folder-"));
  folder = JobFolder.at(parent, key);
});
afterEach(() => rm(parent, { recursive: true, force: true }));

describe("the folder of a job", () => {
  it("has one living owner, and can't be claimed twice", async () => {
    expect(await folder.livingOwner()).toBeUndefined();
    await folder.claim(undefined);
    expect(await folder.livingOwner()).toContain(String(process.pid));
    await expect(folder.claim(undefined)).rejects.toMatchObject({
      code: expect.stringMatching(/ENOTEMPTY|EEXIST/),
    });
    expect(await readdir(parent)).toEqual([expect.stringMatching(/^nbdpull-1a2b3c4d-[0-9a-f]{12}$/)]);
    expect((await stat(join(folder.path, "qemu"))).mode & 0o777).toBe(0o700);
  });

  it("keeps a secret that only its user can read, also for the process that takes it over", async () => {
    expect(await folder.secret()).toBeUndefined();
    await folder.claim(undefined);
    const secret = await folder.secret();
    expect(secret).toHaveLength(32);
    expect((await stat(folder.file("secret"))).mode & 0o777).toBe(0o600);
    const dead = { host: hostname(), pid: 2 ** 22 + 1, startedAt: "x" };
    await writeFile(folder.file("owner.json"), JSON.stringify(dead));
    const later = JobFolder.at(parent, key);
    expect(await later.livingOwner()).toBeUndefined();
    await later.takeOver();
    expect(await JobFolder.at(parent, key).livingOwner()).toContain(String(process.pid));
    expect(await later.secret()).toEqual(secret);
    await writeFile(folder.file("secret"), "half");
    expect(await JobFolder.at(parent, key).secret()).toBeUndefined();
    await folder.remove();
    expect(await readdir(parent)).toEqual([]);
  });

  it("is another one for a domain whose UUID begins alike", () => {
    const other = JobFolder.at(parent, { ...key, domainUuid: "f00dcafe-0000-4000-8000-000000000001" });
    expect(other.path).not.toBe(folder.path);
    expect(JobFolder.at(parent, key).path).toBe(folder.path);
  });

  it.each([
    ["a process that is gone", { pid: 2 ** 22 + 1, startedAt: "x" }],
    ["a later process with the same ID", { pid: process.pid, startedAt: "another boot 17" }],
  ])("does not count %s as a living owner", async (_, owner) => {
    await folder.claim(undefined);
    const { host } = JSON.parse(await readFile(folder.file("owner.json"), "utf8")) as { host: string };
    await writeFile(folder.file("owner.json"), JSON.stringify({ host, ...owner }));
    expect(await folder.livingOwner()).toBeUndefined();
  });

  it("counts an owner on another host as living, and half a note as no owner", async () => {
    await folder.claim(undefined);
    await writeFile(folder.file("owner.json"), JSON.stringify({ host: "other", pid: 7, startedAt: "x" }));
    expect(await folder.livingOwner()).toContain("other");
    await writeFile(folder.file("owner.json"), '{"host":');
    expect(await folder.livingOwner()).toBeUndefined();
  });

  it("is no longer that of a frozen guest after a boot of the host, though libvirt counts runs anew", async () => {
    const domain = { id: 3, name: "web", uuid: key.domainUuid };
    await folder.claim(undefined);
    await folder.markFrozen(domain);
    expect(await folder.isMarkedFrozen(domain)).toBe(true);
    expect(await folder.isMarkedFrozen({ ...domain, id: 4 })).toBe(false);
    const mark = await readFile(folder.file("frozen"), "utf8");
    const boot = (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim();
    await writeFile(folder.file("frozen"), mark.replace(boot, "1b0c9a4e-5d7f-4f0e-9e42-2f6b1c3d5e7f"));
    expect(await folder.isMarkedFrozen(domain)).toBe(false);
  });

  it.each([
    ["7/boot/12", true],
    ["7/boot/", true],
    ["7", true],
    ["", true],
    ["7/boot/13", false],
    ["7/other/12", false],
    ["8/boot/12", false],
    ["8", false],
  ])("was left by the run 7/boot/12 of a domain, by its mark %j: %s", (mark, expected) => {
    expect(canBeSameRun(mark, "7/boot/12")).toBe(expected);
  });

  it("is removed with everything that QEMU left in it, but not what its links point to", async () => {
    await folder.claim(undefined);
    const kept = join(parent, "kept");
    await writeFile(kept, "");
    await writeFile(folder.scratch("vda"), "");
    await symlink(kept, folder.scratch("vdb"));
    await folder.remove();
    await folder.remove();
    expect(await readdir(parent)).toEqual(["kept"]);
  });

  /** Any user but that of this process. */
  const NOBODY = 65_534;
  it.runIf(process.getuid?.() === 0)(
    "is neither trusted nor removed if another user made it first",
    async () => {
      const kept = join(parent, "kept");
      await mkdir(kept);
      await writeFile(join(kept, "file"), "");
      const refused = { code: "E_SCRATCH_OWNER", message: expect.stringContaining(folder.path) };

      await mkdir(folder.path, { mode: 0o777 });
      await symlink(kept, join(folder.path, "qemu"));
      await writeFile(folder.file("owner.json"), JSON.stringify({ host: "other", pid: 1, startedAt: "x" }));
      await lchown(folder.path, NOBODY, NOBODY);
      await expect(folder.remove()).rejects.toMatchObject(refused);
      await expect(folder.livingOwner()).rejects.toMatchObject(refused);

      await rm(folder.path, { recursive: true });
      await symlink(kept, folder.path);
      await expect(folder.remove()).rejects.toMatchObject(refused);
      expect(await readdir(kept)).toEqual(["file"]);
    },
  );

  it("refuses a path too long for a socket, and a parent folder that does not exist", async () => {
    const refused = { code: "E_SCRATCH_PATH" };
    await expect(JobFolder.at(join(parent, "x".repeat(80)), key).claim(undefined)).rejects.toMatchObject(
      refused,
    );
    await expect(JobFolder.at(join(parent, "none"), key).claim(undefined)).rejects.toMatchObject(refused);
    expect(await readdir(parent)).toEqual([]);
  });
});
