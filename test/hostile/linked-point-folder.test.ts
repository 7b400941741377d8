import { readFile, symlink } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull } from "../support/nbdpull.js";

const FORGED = "20361120T113205.123Z";

let chain: MemoryChain;
let domain: string;
let id: string;
beforeEach(async () => {
  chain = await MemoryChain.start(1024 * 1024);
  id = (await chain.take()).manifest.id;
  domain = join(chain.repository.path, MemoryChain.domain);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

describe("a link that is called like a point", () => {
  it.each([
    ["a link to another point", () => symlink(join(domain, id), join(domain, FORGED))],
    ["a link to nothing", () => symlink("nothing", join(domain, FORGED))],
  ])("is damage that points, verify and prune name, and hides no point: %s", async (_, forge) => {
    await forge();
    const repo = chain.repository.path;
    const listed = await nbdpull("points", repo, "--json");
    expect([listed.code, listed.json()]).toMatchObject([3, [{ id }]]);
    expect(listed.stderr).toContain(join(domain, FORGED));
    expect((await chain.take()).manifest.disks[0]?.parent).toBe(id);
    const verified = await nbdpull("verify", repo);
    expect([verified.code, verified.stdout + verified.stderr]).toMatchObject([
      3,
      expect.stringContaining(join(domain, FORGED)),
    ]);
    const pruned = await nbdpull("prune", repo, "--keep-last", "1");
    expect([pruned.code, pruned.stderr]).toEqual([3, expect.stringContaining(join(domain, FORGED))]);
    const target = join(chain.folder, "restored.raw");
    expect((await nbdpull("restore", repo, "--disk", "vda", "--to", target)).code).toBe(0);
    expect((await readFile(target)).length).toBe(1024 * 1024);
  });
});
