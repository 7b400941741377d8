import { mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { HeldFolder } from "../../../src/backup/host/held-folder.js";
import { removeDead } from "../../../src/backup/repository/leftovers.js";

let path: string;
let domain: HeldFolder;
beforeEach(async () => {
  path = await mkdtemp(join(tmpdir(), "nbdpull-dead-"));
  for (const name of [".dead-1", ".dead-2", ".dead-3", ".dead-4", "kept"]) {
    await mkdir(join(path, name));
    await writeFile(join(path, name, "vda.qcow2"), "an image");
  }
  domain = await HeldFolder.open(path);
});
afterEach(async () => {
  await domain.close();
  await rm(path, { recursive: true });
});

it("removes what has the name of the dead, two at a time, and nothing else", async () => {
  const removing = domain.remove.bind(domain);
  let atOnce = 0;
  let most = 0;
  vi.spyOn(domain, "remove").mockImplementation(async (name) => {
    atOnce += 1;
    most = Math.max(most, atOnce);
    await removing(name);
    atOnce -= 1;
  });
  await removeDead(domain);
  expect(await readdir(path)).toEqual(["kept"]);
  expect(await readdir(join(path, "kept"))).toEqual(["vda.qcow2"]);
  expect(most).toBe(2);
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
