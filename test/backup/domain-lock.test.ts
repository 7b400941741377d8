import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { Repository } from "../../src/backup/repository.js";

const DOMAIN = "guest";

let folder: string;
let repository: Repository;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-lock-"));
  repository = await Repository.openOrCreate(folder);
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});

const names = (): Promise<string[]> => readdir(join(folder, DOMAIN));

it("keeps the marks of readers and the lock of a writer apart, in one process too", async () => {
  await repository.writing(DOMAIN, async () => {
    await repository.reading(DOMAIN, async () => {
      await repository.reading(DOMAIN, async () => {
        expect((await names()).filter((name) => name.startsWith(".reader-"))).toHaveLength(2);
      });
      expect((await names()).filter((name) => name.startsWith(".reader-"))).toHaveLength(1);
    });
    expect((await names()).filter((name) => name.startsWith(".reader-"))).toEqual([]);
    expect(await names()).toContain(".lock");
  });
  // The folder goes with the last of them: nothing is in it.
  expect(await readdir(folder)).toEqual(["nbdpull.json"]);
});
