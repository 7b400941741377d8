import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { chmod, link, mkdir, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { BackupError } from "../../../src/backup/base/errors.js";
import { openExport } from "../../../src/backup/export/open-export.js";
import { publish, temporaryPathFor } from "../../../src/backup/host/publish.js";
import { type PullFileOptions, pullFile } from "../../../src/backup/take/pull-file.js";
import { MemoryChain } from "../../support/memory-chain.js";

const CLUSTER = 64 * 1024;
const SIZE = 8 * CLUSTER;

let chain: MemoryChain;
let folder: string;
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
  chain.disk.write(0, Buffer.alloc(2 * CLUSTER, 0x11));
  chain.disk.startBitmap("since");
  chain.disk.write(CLUSTER, Buffer.alloc(512, 0x22));
  chain.show();
  folder = join(chain.folder, "out");
  await mkdir(folder);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

const at = (name: string): string => join(folder, name);
const names = async (): Promise<string[]> => (await readdir(folder)).sort();

async function pulled(name: string, options: Partial<PullFileOptions> = {}): Promise<void> {
  const { bitmap } = options;
  await using client = await openExport(chain.uri, bitmap, {});
  await pullFile({
    client,
    bitmap,
    imagePath: at(name),
    format: "raw",
    force: false,
    sync: false,
    ...options,
  });
}

describe("the files beside an image", () => {
  it("are removed with it: a full copy that replaces an increment leaves no map or digests", async () => {
    await pulled("x.raw", { bitmap: "since", digests: "xxh64" });
    expect(await names()).toEqual(["x.raw", "x.raw.digests", "x.raw.map"]);
    await pulled("x.raw", { force: true });
    expect(await names()).toEqual(["x.raw"]);
  });

  it("are replaced by those of the new image", async () => {
    await pulled("x.raw", { digests: "xxh64" });
    const before = await readFile(at("x.raw.digests"));
    await pulled("x.raw", { bitmap: "since", digests: "xxh64", force: true });
    expect(await names()).toEqual(["x.raw", "x.raw.digests", "x.raw.map"]);
    expect((await readFile(at("x.raw.digests"))).equals(before)).toBe(false);
  });

  it.each(["x.raw", "x.raw.map", "x.raw.digests"])(
    "are not published, and neither is the image, if one of the names is taken: %s",
    async (taken) => {
      await mkdir(at(taken));
      const failure = pulled("x.raw", { bitmap: "since", digests: "xxh64", force: true });
      await expect(failure).rejects.toMatchObject({ code: "E_EXISTS" });
      expect(await names()).toEqual([taken]);
    },
  );
});

describe("publishing", () => {
  async function finished(name: string): Promise<{ temporary: string; final: string }> {
    const file = { temporary: temporaryPathFor(at(name)), final: at(name) };
    await writeFile(file.temporary, `new ${name}`);
    return file;
  }

  it("never replaces a file that appeared meanwhile, and leaves nothing new when it fails half-way", async () => {
    const first = await finished("x.map");
    const files = [
      {
        final: first.final,
        // Read when the first file gets its name: the last moment at which the second name can be taken.
        get temporary(): string {
          writeFileSync(at("x"), "precious");
          return first.temporary;
        },
      },
      await finished("x"),
    ];
    await expect(publish(files, { sync: false, force: false })).rejects.toMatchObject({ code: "E_EXISTS" });
    expect(await readFile(at("x"), "utf8")).toBe("precious");
    expect((await names()).filter((name) => !name.startsWith("."))).toEqual(["x"]);
  });

  it("takes back names if a later file is gone", async () => {
    const files = [await finished("x.map"), await finished("x")];
    await rm(files[1]?.temporary ?? "");
    await expect(publish(files, { sync: false, force: false })).rejects.toMatchObject({ code: "ENOENT" });
    expect(await names()).toEqual([]);
  });

  it("restores what it replaced, and what described it, when it fails half-way", async () => {
    for (const name of ["vda", "vda.map", "vdb"]) await writeFile(at(name), `old ${name}`);
    const files = [await finished("vda"), await finished("new"), await finished("vdb")];
    await rm(files[2]?.temporary ?? "");
    const failure = publish(files, { sync: false, force: true, stale: [at("vda.map"), at("none")] });
    await expect(failure).rejects.toMatchObject({ code: "ENOENT" });
    expect(await names()).toEqual(["vda", "vda.map", "vdb"]);
    for (const name of await names()) expect(await readFile(at(name), "utf8")).toBe(`old ${name}`);
  });

  it("says why it failed and where an old file is that can't be put back, and puts the others back", async () => {
    for (const name of ["vda", "vdb"]) await writeFile(at(name), `old ${name}`);
    const files = [
      await finished("vda"),
      await finished("vdb"),
      {
        final: at("new"),
        // Read when the others have their names.
        get temporary(): string {
          rmSync(at("vda"));
          mkdirSync(join(at("vda"), "in the way"), { recursive: true });
          return at(".gone");
        },
      },
    ];
    const failure = await publish(files, { sync: false, force: true }).catch((error: unknown) => error);
    expect(failure).toMatchObject({
      code: "ENOENT",
      message: expect.stringMatching(/\.gone.*renamed by hand/),
    });
    const { putBack } = (failure as BackupError).details as {
      putBack: { temporary: string; final: string }[];
    };
    expect(putBack.map(({ final }) => final)).toEqual([at("vda")]);
    expect(await readFile(putBack[0]?.temporary ?? "", "utf8")).toBe("old vda");
    expect((failure as BackupError).message).toContain(putBack[0]?.temporary);
    expect(await readFile(at("vdb"), "utf8")).toBe("old vdb");
  });

  it("replaces nothing but plain files, even with force", async () => {
    await mkdir(at("folder"));
    await symlink(at("elsewhere"), at("link"));
    for (const name of ["folder", "link"]) {
      const file = await finished(name);
      await expect(publish([file], { sync: false, force: true })).rejects.toMatchObject({ code: "E_EXISTS" });
      await rm(file.temporary);
    }
    expect(await names()).toEqual(["folder", "link"]);
  });

  it("replaces a file with force and sync", async () => {
    await writeFile(at("x"), "old");
    const files = [await finished("x.map"), await finished("x")];
    await publish(files, { sync: true, force: true });
    expect(await names()).toEqual(["x", "x.map"]);
    expect(await readFile(at("x"), "utf8")).toBe("new x");
  });
});

describe("a folder that is shared with a group", () => {
  const modeOf = async (name: string): Promise<number> => (await stat(at(name))).mode & 0o7777;

  it.each([
    [0o2770, 0o660],
    [0o2750, 0o640],
    [0o2700, 0o600],
    [0o770, 0o600],
  ])("of mode %o gives its group the rights to what is made in it: %o", async (ofFolder, ofFile) => {
    await chmod(folder, ofFolder);
    await pulled("disk.raw");
    await pulled("disk.raw", { force: true });
    expect(await modeOf("disk.raw")).toBe(ofFile);
  });

  it("lets nobody in it give rights to another file through a link", async () => {
    const victim = join(chain.folder, "victim");
    await writeFile(victim, "root's own", { mode: 0o600 });
    await chmod(folder, 0o2770);
    const [temporary, final] = [temporaryPathFor(at("disk.raw")), at("disk.raw")];
    for (const exchange of [symlink, link]) {
      await exchange(victim, temporary);
      await publish([{ temporary, final }], { sync: false, force: false }).catch(() => undefined);
      expect((await stat(victim)).mode & 0o777).toBe(0o600);
      await rm(temporary, { force: true });
      await rm(final, { force: true });
    }
  });
});
