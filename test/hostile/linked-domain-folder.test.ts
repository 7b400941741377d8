import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { attack, giveAway, NO_ATTACKER, secretIn } from "../support/attacker.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull } from "../support/nbdpull.js";
import { describeUnless } from "../support/tools.js";

const LINK = "web";

let chain: MemoryChain;
let secret: Awaited<ReturnType<typeof secretIn>>;
let repo: string;
beforeEach(async () => {
  chain = await MemoryChain.start(1024 * 1024);
  await chain.take();
  secret = await secretIn(chain.folder);
  for (const name of [".dead-letters", ".tax.partial"]) {
    await mkdir(join(secret.folder, name));
    await writeFile(join(secret.folder, name, "only copy"), "");
  }
  repo = chain.repository.path;
  await giveAway(repo, [chain.folder]);
  await attack(`ln -s '${secret.folder}' '${repo}/${LINK}'`);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

describeUnless(NO_ATTACKER, "a link in the place of a domain's folder", () => {
  it.each([
    ["points", () => ["points", repo]],
    ["points of the domain", () => ["points", repo, LINK]],
    ["verify", () => ["verify", repo]],
    ["prune", () => ["prune", repo, "--keep-last", "1", "--trust-repository"]],
    ["restore", () => ["restore", repo, LINK, "--to", join(chain.folder, "restored")]],
    ["serve", () => ["serve", repo, LINK, "--socket", join(chain.folder, "serve.sock"), "--once"]],
    [
      "import",
      () => [
        ...["import", join(chain.folder, "image"), "--to", repo, "--domain", LINK, "--disk", "vda"],
        "--trust-repository",
      ],
    ],
  ])("is an error that names it, and is not followed: %s", async (_, args) => {
    await writeFile(join(chain.folder, "image"), Buffer.alloc(1024 * 1024, 1));
    const ran = await nbdpull(...args(), "--json");
    expect([ran.code, ran.json()]).toMatchObject([3, { error: { code: "E_LINK" } }]);
    expect(ran.stderr).toContain(join(repo, LINK));
    expect((await readdir(secret.folder)).sort()).toEqual([".dead-letters", ".tax.partial", "shadow"]);
    expect(await readdir(join(secret.folder, ".tax.partial"))).toEqual(["only copy"]);
    expect(await readFile(secret.file, "utf8")).toBe(secret.content);
  });

  it("does no harm in a folder that is removed", async () => {
    await attack(`rm '${repo}/${LINK}'`);
    const domain = join(repo, MemoryChain.domain);
    await giveAway(domain, []);
    await attack(`mkdir '${domain}/.dead-1' '${domain}/.x.partial'
      for place in .dead-1/a .dead-2 .x.partial/b .y.partial; do ln -s '${secret.folder}' '${domain}/'$place; done`);
    await chain.take();
    expect((await readdir(secret.folder)).sort()).toEqual([".dead-letters", ".tax.partial", "shadow"]);
    expect((await readdir(domain)).filter((name) => name.startsWith("."))).toEqual([]);
  });
});
