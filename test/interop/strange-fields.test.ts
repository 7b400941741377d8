/** Manifests with fields that this version knows nothing of, and that can hardly be written again. */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull } from "../support/nbdpull.js";

const CLUSTER = 64 * 1024;
const MOST_MANIFEST_BYTES = 4 * 1024 * 1024;

/** A full point and two increments. @param depth of a list in the manifest of the newest one */
async function chainWith(depth: number): Promise<MemoryChain> {
  const chain = await MemoryChain.start(16 * CLUSTER);
  for (const round of [1, 2, 3]) {
    chain.disk.write(round * CLUSTER, Buffer.alloc(CLUSTER, `round ${round}`));
    await chain.take();
  }
  const path = manifestOf(chain);
  const field = `"later": ${"[".repeat(depth)}${"]".repeat(depth)}`;
  await writeFile(path, (await readFile(path, "utf8")).replace("{", `{${field},`));
  return chain;
}

function manifestOf(chain: MemoryChain): string {
  const id = chain.points.at(-1)?.id ?? "";
  return join(chain.repository.pointFolder(MemoryChain.domain, id), "point.json");
}

describe("a manifest with deep fields that this version does not know", () => {
  it("is written without indentation, where that would make it longer than it may be", async () => {
    await using chain = await chainWith(1_450);
    const { path } = chain.repository;
    expect(await nbdpull("prune", path, "--keep-last", "1")).toMatchObject({ code: 0 });
    const text = await readFile(manifestOf(chain), "utf8");
    expect(text.length).toBeLessThan(MOST_MANIFEST_BYTES);
    expect(text).toContain("[".repeat(1_450));
    expect(await chain.repository.points(MemoryChain.domain, () => undefined)).toHaveLength(1);
    expect(await nbdpull("verify", path)).toMatchObject({ code: 0 });
  });

  it("stays as it is with all that it is based on, where it can't be written again", async () => {
    await using chain = await chainWith(10_000);
    const { path } = chain.repository;
    const before = await readFile(manifestOf(chain), "utf8");
    const pruned = await nbdpull("prune", path, "--keep-last", "1");
    expect(pruned).toMatchObject({ code: 3, stderr: expect.stringContaining("E_MANIFEST") });
    expect(pruned.stderr).toContain("take those fields out of its point.json");
    expect(await readFile(manifestOf(chain), "utf8")).toBe(before);
    expect(await nbdpull("verify", path)).toMatchObject({ code: 0 });
    expect(await chain.repository.pointIds(MemoryChain.domain)).toHaveLength(3);
    const wrong = ["--fix-clock", "--wrong", chain.points.at(-1)?.id ?? ""];
    const dated = await nbdpull("points", path, MemoryChain.domain, ...wrong);
    expect(dated).toMatchObject({ code: 3, stderr: expect.stringContaining("E_MANIFEST") });
    expect(await readFile(manifestOf(chain), "utf8")).toBe(before);
  });
});
