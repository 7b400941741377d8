import { mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { HeldFolder } from "../../../src/backup/host/held-folder.js";
import { removeDead } from "../../../src/backup/repository/leftovers.js";

async function fill(path: string): Promise<HeldFolder> {
  for (const name of [".dead-1", ".dead-2", ".dead-3", ".dead-4", "kept"]) {
    await mkdir(join(path, name), { recursive: true });
    await writeFile(join(path, name, "vda.qcow2"), "an image");
  }
  return await HeldFolder.open(path);
}

let path: string;
let domain: HeldFolder;
beforeEach(async () => {
  path = await mkdtemp(join(tmpdir(), "nbdpull-dead-"));
  domain = await fill(path);
});
afterEach(async () => {
  await domain.close();
  await rm(path, { recursive: true });
});

it("removes what has the name of the dead, two at a time in all domains, and nothing else", async () => {
  const otherPath = await mkdtemp(join(tmpdir(), "nbdpull-dead-"));
  try {
    await using other = await fill(otherPath);
    let atOnce = 0;
    let most = 0;
    for (const each of [domain, other]) {
      const removing = each.remove.bind(each);
      vi.spyOn(each, "remove").mockImplementation(async (name) => {
        atOnce += 1;
        most = Math.max(most, atOnce);
        await removing(name);
        atOnce -= 1;
      });
    }
    await Promise.all([removeDead(domain), removeDead(other)]);
    expect(await readdir(path)).toEqual(["kept"]);
    expect(await readdir(otherPath)).toEqual(["kept"]);
    expect(await readdir(join(path, "kept"))).toEqual(["vda.qcow2"]);
    expect(most).toBe(2);
  } finally {
    await rm(otherPath, { recursive: true });
  }
});

it("fails with the first failure, when nothing is being removed any more", async () => {
  const removing = domain.remove.bind(domain);
  const ended: string[] = [];
  vi.spyOn(domain, "remove").mockImplementation(async (name) => {
    if (name === ".dead-1") throw new Error("the medium is gone");
    await removing(name);
    ended.push(name);
  });
  await expect(removeDead(domain)).rejects.toThrow("the medium is gone");
  const left = (await readdir(path)).filter((name) => name.startsWith(".dead-"));
  expect([...left, ...ended].sort()).toEqual([".dead-1", ".dead-2", ".dead-3", ".dead-4"]);
  vi.restoreAllMocks();
  await removeDead(domain);
  expect(await readdir(path)).toEqual(["kept"]);
});
