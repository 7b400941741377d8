import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, expect, it } from "vitest";
import { attack, giveAway, NO_ATTACKER } from "../support/attacker.js";
import { MemoryChain } from "../support/memory-chain.js";
import { finished, startNbdpull } from "../support/nbdpull.js";
import { describeUnless, skipUnable } from "../support/tools.js";

const DOMAIN = MemoryChain.domain;

let chain: MemoryChain;
let repo: string;
let point: string;
beforeEach(async () => {
  chain = await MemoryChain.start(1024 * 1024);
  chain.disk.write(0, Buffer.alloc(256 * 1024, 0x11));
  await chain.take({ format: "raw" });
  chain.disk.write(0, Buffer.alloc(512, 0x22));
  const { manifest } = await chain.take({ format: "raw" });
  repo = chain.repository.path;
  point = join(repo, DOMAIN, manifest.id);
  await giveAway(repo, [chain.folder]);
  await giveAway(join(repo, DOMAIN), []);
  await giveAway(point, []);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

const ways = {
  points: () => ["points", repo],
  verify: () => ["verify", repo],
  prune: () => ["prune", repo, "--keep-last", "1", "--trust-repository"],
  restore: () => ["restore", repo, "--to", join(chain.folder, "restored")],
  serve: () => ["serve", repo, "--socket", join(chain.folder, "serve.sock"), "--once"],
  import: () => [
    ...["import", join(chain.folder, "image"), "--to", repo, "--domain", DOMAIN, "--disk", "vda"],
    "--trust-repository",
  ],
} as const;

/** Fails if the command doesn't end by itself. `SIGTERM` alone would not end one that waits in `open`. */
async function expectDamage(args: readonly string[], path: string): Promise<void> {
  await writeFile(join(chain.folder, "image"), Buffer.alloc(1024 * 1024, 1));
  const run = startNbdpull(args);
  const timer = setTimeout(() => run.kill("SIGKILL"), 60_000);
  const ran = await finished(run).finally(() => clearTimeout(timer));
  expect([args[0], ran.code, ran.stderr + ran.stdout]).toEqual([args[0], 3, expect.stringContaining(path)]);
}

describeUnless(NO_ATTACKER, "a FIFO in a repository", () => {
  it.each(Object.keys(ways) as (keyof typeof ways)[])(
    "is an error at once as the marker: %s",
    async (way) => {
      await attack(`cd '${repo}'; rm nbdpull.json; mkfifo nbdpull.json`);
      await expectDamage(ways[way](), "nbdpull.json");
    },
  );

  it.each(["points", "verify", "prune", "restore", "serve"] as const)(
    "is an error at once as a manifest: %s",
    async (way) => {
      await attack(`cd '${point}'; rm point.json; mkfifo point.json`);
      await expectDamage(ways[way](), "point.json");
    },
  );

  it.each(["points", "verify", "prune", "restore", "import"] as const)(
    "is an error at once as a journal: %s",
    async (way) => {
      await attack(`cd '${join(repo, DOMAIN)}'; mkdir .prune; mkfifo .prune/journal.json`);
      await expectDamage(ways[way](), "journal.json");
    },
  );

  it.each(["vda.raw", "vda.map", "vda.digests"])("is an error at once as %s", async (file) => {
    await attack(`cd '${point}'; rm ${file}; mkfifo ${file}`);
    for (const way of ["verify", "prune", "restore"] as const) await expectDamage(ways[way](), file);
  });

  it("is an error at once as a device without end, too", async (context) => {
    await rm(join(point, "point.json"));
    const made = await execa("mknod", [join(point, "point.json"), "c", "1", "5"], { reject: false });
    if (made.failed) skipUnable(context, "mknod", "no device can be made here");
    for (const way of ["points", "verify"] as const) await expectDamage(ways[way](), "point.json");
  });
});
