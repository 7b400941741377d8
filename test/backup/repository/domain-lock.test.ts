import { mkdir, mkdtemp, readdir, rm, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { waitForReaders } from "../../../src/backup/repository/domain-lock.js";
import { Repository } from "../../../src/backup/repository/repository.js";
import { skipUnable } from "../../support/tools.js";

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

it("keeps readers' marks and the writer's lock apart, even in one process", async () => {
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
  // The empty folder is removed with the last of them.
  expect(await readdir(folder)).toEqual(["nbdpull.json"]);
});

it("is not taken from its next holder by one that has lost it", async () => {
  const ended: string[] = [];
  let next: Promise<void> | undefined;
  await repository.writing(DOMAIN, async () => {
    await rm(join(folder, DOMAIN, ".lock"), { recursive: true });
    await new Promise<void>((begun) => {
      next = repository.writing(DOMAIN, async () => {
        begun();
        while (ended.length === 0) await sleep(5);
        ended.push(...(await names()).sort());
      });
    });
  });
  ended.push("the first");
  await next;
  expect(ended).toEqual(["the first", expect.stringMatching(/^\.holder-/), ".lock"]);
});

it("tells a reader that lost its mark that points were pruned meanwhile", async () => {
  const point = join(folder, DOMAIN, "20261120T113205.123Z");
  const loseMark = async (): Promise<void> => {
    for (const name of await names()) {
      if (name.startsWith(".reader-")) await rm(join(folder, DOMAIN, name), { recursive: true });
    }
  };
  await mkdir(point, { recursive: true });
  await repository.reading(DOMAIN, loseMark);
  const pruned = repository.reading(DOMAIN, async () => {
    await loseMark();
    await rm(point, { recursive: true });
  });
  await expect(pruned).rejects.toMatchObject({ code: "E_PRUNED_MEANWHILE" });
});

it.each([
  ["lock", ".lock", (work: () => Promise<void>) => repository.writing(DOMAIN, work)],
  [
    "reader's mark",
    ".reader-0f0e7e0a-0000-4000-8000-000000000000",
    (work: () => Promise<void>) =>
      repository.writing(DOMAIN, async ({ folder: domain }) => {
        await waitForReaders(domain, DOMAIN, { waitMs: 20_000 });
        await work();
      }),
  ],
])("is not hindered by the %s of a run that died while the clock was ahead", async (_, name, use) => {
  await mkdir(join(folder, DOMAIN, name), { recursive: true });
  const ahead = Date.now() / 1000 + 86_400 * 3653;
  await utimes(join(folder, DOMAIN, name), ahead, ahead);
  // Nobody renews it for eleven seconds.
  let now = performance.now();
  const clock = vi.spyOn(performance, "now").mockImplementation(() => now);
  try {
    let isAlone = false;
    const used = use(async () => {
      isAlone = true;
    });
    await sleep(300);
    expect(isAlone).toBe(false);
    now += 11_000;
    await used;
    expect(isAlone).toBe(true);
  } finally {
    clock.mockRestore();
  }
});

it("can be read when the file system is full", async (context) => {
  const options = ["-t", "tmpfs", "-o", "nr_inodes=8,mode=0700", "small", folder];
  const mounted = await execa("mount", options, { reject: false });
  if (mounted.failed) skipUnable(context, "mount", "only root may mount");
  try {
    const full = await Repository.openOrCreate(folder);
    await mkdir(join(folder, DOMAIN));
    for (let i = 0; i < 8; i += 1) await writeFile(join(folder, String(i)), "").catch(() => undefined);
    await expect(mkdir(join(folder, DOMAIN, "more"))).rejects.toMatchObject({ code: "ENOSPC" });
    expect(await full.reading(DOMAIN, async () => "read")).toBe("read");
  } finally {
    await execa("umount", [folder]);
  }
});
