import { copyFile, open, readdir, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { proveChain } from "../../src/backup/chain/chain.js";
import { DAMAGE_RECORD } from "../../src/backup/repository/damage-record.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, type Ran } from "../support/nbdpull.js";

const CLUSTER = 64 * 1024;
const NAME = MemoryChain.domain;

let chain: MemoryChain;
let ids: readonly string[];
/** A full point, two increments on it, and a full one. */
beforeEach(async () => {
  chain = await MemoryChain.start(8 * CLUSTER);
  for (const [i, full] of [true, false, false, true].entries()) {
    chain.disk.write(i * CLUSTER, Buffer.alloc(CLUSTER, i + 1));
    await chain.take({ full, digests: "sha256" });
  }
  ids = chain.points.map(({ id }) => id);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

/** Changes a byte of the data of a point, which QEMU's tools don't notice. */
async function damage(point: number, at = CLUSTER + 100): Promise<void> {
  await using handle = await open(chain.file(point), "r+");
  await handle.write(Buffer.from([0xee]), 0, 1, at);
}

function run(command: string, ...more: readonly string[]): Promise<Ran> {
  return nbdpull(command, chain.repository.path, ...more);
}

interface Told {
  readonly id: string;
  readonly restorable: boolean;
  readonly obstacles: readonly { readonly point: string; readonly disk?: string; readonly message: string }[];
}

async function restorable(): Promise<readonly boolean[]> {
  const ran = await run("points", "--json");
  const told = ran.json() as Told[];
  expect(ran.code).toBe(told.every((point) => point.restorable) ? 0 : 3);
  return told.map((point) => point.restorable);
}

describe("damage that a verify finds", () => {
  it("is told of each point that can't be restored because of it, until it is gone", async () => {
    await copyFile(chain.file(0), join(chain.folder, "kept"));
    await damage(0);
    expect(await restorable()).toEqual([true, true, true, true]);
    const verified = await run("verify");
    expect(verified.code).toBe(3);
    expect(verified.stdout).toMatch(new RegExp(`${ids[0]}: DAMAGED`));
    expect(verified.stdout).toMatch(
      new RegExp(
        `${ids[2]}: sound itself, but CAN'T BE RESTORED.*\n    vda needs point ${ids[0]}, which is damaged: guest offset 0`,
      ),
    );
    expect(verified.stdout).toMatch(new RegExp(`${ids[3]}: sound, `));
    const json = (await run("verify", "--json")).json() as { points: Told[] };
    expect(json.points.map((point) => point.restorable)).toEqual([false, false, false, true]);
    expect(json.points[2]?.obstacles).toMatchObject([{ point: ids[0], disk: "vda" }]);

    expect(await restorable()).toEqual([false, false, false, true]);
    const listed = await run("points");
    expect(listed.stdout).toMatch(new RegExp(`CAN'T BE RESTORED: vda needs point ${ids[0]}`));
    expect(listed.stdout).toMatch(/3 CAN'T BE RESTORED/);
    const doctor = await nbdpull("doctor", "--to", chain.repository.path, "--json");
    const causes = (doctor.json() as { cause: string; mend?: string }[]).filter(({ cause }) =>
      cause.includes("can't be restored"),
    );
    expect(causes).toHaveLength(3);
    expect(causes[0]?.mend).toMatch(/^nbdpull repair /);

    await copyFile(join(chain.folder, "kept"), chain.file(0));
    expect((await run("verify")).code).toBe(0);
    expect(await restorable()).toEqual([true, true, true, true]);
    expect(await readdir(join(chain.file(0), ".."))).not.toContain(DAMAGE_RECORD);
  });

  it("counts for a verify of the newest chain alone, and a missing file or point needs none", async () => {
    await damage(0);
    expect((await run("verify", NAME, "--at", ids[2] ?? "")).code).toBe(3);
    expect((await run("verify", NAME, "--at", "latest")).code).toBe(0);
    expect(await restorable()).toEqual([false, false, false, true]);
    await rm(chain.file(3, "vda.digests"));
    expect(await restorable()).toEqual([false, false, false, false]);
    await rm(join(chain.file(1), ".."), { recursive: true });
    expect(await restorable()).toEqual([false, false, false]);
  });
});

describe("what an increment would be based on", () => {
  const prove = (point: number): Promise<void> => {
    const manifest = chain.points[point];
    if (!manifest) throw new Error(`there is no point ${point}`);
    return proveChain(chain.repository, NAME, manifest, "vda");
  };

  it("is refused if a verify has found damage in any point of it", async () => {
    await damage(0);
    await expect(prove(2)).resolves.toBeUndefined();
    await run("verify");
    await expect(prove(2)).rejects.toThrow(
      new RegExp(`disk vda of point ${ids[0]} is damaged at guest offset 0.*found by the verify of 20`),
    );
    await expect(prove(3)).resolves.toBeUndefined();
  });

  it.each(["vda.qcow2", "vda.digests"])("is refused if %s of its base is cut off or gone", async (name) => {
    await truncate(chain.file(0, name), name === "vda.qcow2" ? 2 * CLUSTER : 80);
    await expect(prove(2)).rejects.toMatchObject({ name: "DamageError" });
    await rm(chain.file(0, name));
    await expect(prove(2)).rejects.toThrow(/missing/);
  });

  it("is refused if a table of it leads out of the file", async () => {
    await using handle = await open(chain.file(1), "r+");
    const { size } = await handle.stat();
    const bytes = Buffer.alloc(size);
    await handle.read(bytes, 0, size, 0);
    const l1 = Number(bytes.readBigUInt64BE(40));
    const l2 = Number(bytes.readBigUInt64BE(l1) & 0x00fffffffffffe00n);
    bytes.writeBigUInt64BE(0x8000_0000_1000_0000n, l2 + 8);
    await handle.write(bytes, 0, size, 0);
    await expect(prove(2)).rejects.toMatchObject({ code: "E_DAMAGED" });
  });

  it.each([
    ["no JSON", (path: string) => writeFile(path, "{")],
    ["of a later version", (path: string) => writeFile(path, '{"format":"nbdpull-damage","version":2}')],
    ["a link", (path: string) => symlink("/etc/passwd", path)],
    [
      "too long",
      async (path: string) => {
        await writeFile(path, "");
        await truncate(path, 2 ** 40);
      },
    ],
  ])("is refused, and called damaged, while its record is %s; a verify replaces it", async (_, forge) => {
    await forge(chain.file(1, DAMAGE_RECORD));
    await expect(prove(2)).rejects.toThrow(/record of damage/);
    expect(await restorable()).toEqual([true, false, true, true]);
    expect((await run("verify")).code).toBe(0);
    await expect(prove(2)).resolves.toBeUndefined();
  });
});

describe("prune of a repository in which something is wrong", () => {
  it("merges nothing out of a damaged chain, and says so", async () => {
    await damage(0);
    await run("verify");
    const ran = await run("prune", "--keep-last", "2");
    expect(ran.code).toBe(0);
    expect(ran.stdout).toMatch(new RegExp(`${ids[0]}  keep  \\(${ids[2]} is based on it, damaged\\)`));
    expect(await chain.repository.pointIds(NAME)).toEqual(ids);
    // Without a kept point that needs it the chain goes.
    expect((await run("prune", "--keep-last", "1")).code).toBe(0);
    expect(await chain.repository.pointIds(NAME)).toEqual(ids.slice(3));
  });

  it("prunes the other domains, names the bad one, and ends with the worst exit code", async () => {
    for (const name of ["alpha", "omega"]) {
      for (let i = 0; i < 2; i += 1) await chain.take({ full: true, domain: { name, uuid: null } });
    }
    const [first = ""] = await chain.repository.pointIds("alpha");
    await writeFile(join(chain.repository.pointFolder("alpha", first), "point.json"), "{");
    // Held by this process, which is alive.
    const ran = await chain.repository.writing(NAME, () => run("prune", "--keep-last", "1", "--json"));
    expect(ran.code).toBe(3);
    const { domains } = ran.json() as { domains: { domain: string; error?: { code: string } }[] };
    expect(domains.map(({ domain, error }) => [domain, error?.code])).toEqual([
      ["alpha", "E_MANIFEST"],
      [NAME, "E_LOCKED"],
      ["omega", undefined],
    ]);
    expect(ran.stderr).toMatch(/nbdpull: \w+: alpha: .*point.json/);
    expect(await chain.repository.pointIds("omega")).toHaveLength(1);
    const writers = [
      ["prune", NAME, "--keep-last", "1"],
      ["forget", NAME, "--force"],
      ["points", NAME, "--fix-clock"],
    ] as const;
    const locked = await chain.repository.writing(NAME, async () => {
      const ofWriters = Promise.all(writers.map(([command, ...args]) => run(command, ...args)));
      // Who only reads doesn't wait.
      expect((await run("report", "--json")).json()).toMatchObject({ totals: { domains: 3 } });
      return await ofWriters;
    });
    expect(locked.map(({ code }) => code)).toEqual([4, 4, 4]);
    for (const { stderr } of locked) expect(stderr).toContain("E_LOCKED: another nbdpull is writing points");
  });
});
