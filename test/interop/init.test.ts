import { mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { nbdpull, type Ran, runNbdpull } from "../support/nbdpull.js";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-init-"));
  await writeFile(join(folder, "disk.img"), Buffer.alloc(1024 * 1024, 1));
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});

/** Without what the tests add to make repositories. */
function add(to: string, ...more: readonly string[]): Promise<Ran> {
  const args = ["import", join(folder, "disk.img"), "--domain", "web", "--disk", "vda", "--to", to, "--json"];
  return runNbdpull([...args, ...more], { create: false });
}

function errorOf(ran: Ran): { code: number; error: string; message: string } {
  const { error } = ran.json() as { error: { code: string; message: string } };
  return { code: ran.code, error: error.code, message: error.message };
}

describe("a repository that is not there", () => {
  it("is not made by a command that adds points, which says how to make it", async () => {
    const repo = join(folder, "repo");
    const empty = join(folder, "empty");
    await mkdir(empty);
    for (const path of [repo, empty]) {
      const refused = errorOf(await add(path));
      expect(refused).toMatchObject({ code: 4, error: "E_NO_REPOSITORY" });
      expect(refused.message).toContain(`nbdpull init ${path}`);
    }
    for (const command of [
      ["backup", "web"],
      ["attach", "web"],
    ]) {
      const ran = await runNbdpull([...command, "--to", repo, "--connect", "test:///default", "--json"], {
        create: false,
      });
      expect(ran.code).not.toBe(0);
    }
    expect(await readdir(folder)).toEqual(["disk.img", "empty"]);
    expect(await readdir(empty)).toEqual([]);
    expect((await nbdpull("init", repo)).code).toBe(0);
    expect((await add(repo)).code).toBe(0);
    expect((await add(empty, "--create")).code).toBe(0);
    expect((await nbdpull("points", empty)).stdout).toMatch(/1 point/);
  });

  it("is made by init, once", async () => {
    const repo = join(folder, "new", "repo");
    const made = await nbdpull("init", repo, "--json");
    expect(made.json()).toMatchObject({ path: repo, id: expect.stringMatching(/^[0-9a-f-]{36}$/) });
    expect(errorOf(await nbdpull("init", repo, "--json"))).toMatchObject({
      code: 4,
      error: "E_REPOSITORY_EXISTS",
    });
    expect(errorOf(await nbdpull("init", folder, "--json"))).toMatchObject({
      code: 2,
      error: "E_NOT_A_REPOSITORY",
    });
  });

  it.each(["s3:bucket/x", "sftp://host/x", "backup@host:/x", "host:x"])(
    "is no folder of this host if it is called %s",
    async (address) => {
      expect(errorOf(await add(address, "--create"))).toMatchObject({ code: 2, error: "E_SCHEME" });
      expect(errorOf(await nbdpull("init", address, "--json"))).toMatchObject({ code: 2, error: "E_SCHEME" });
      expect(errorOf(await nbdpull("points", address, "--json"))).toMatchObject({
        code: 2,
        error: "E_SCHEME",
      });
    },
  );

  it("may have a colon in its name all the same", async () => {
    const path = join(folder, "a:b");
    expect((await nbdpull("init", path)).code).toBe(0);
    expect((await add(path)).code).toBe(0);
  });
});
