/**
 * The attack: whoever can write to the repository makes files that take a second to write and hours to read.
 * A command must end at the first SIGTERM all the same, and do in proportion what is there.
 */
import { lstat, lutimes, mkdir, symlink, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, type Ran, type Running, startNbdpull, untilOpen } from "../support/nbdpull.js";

const TiB = 1024 ** 4;
/** More than any command needs to start and to read what has an end, or to end once it has been told to. */
const MOMENT_MS = 60_000;

let chain: MemoryChain;
let point: Manifest;
let repo: string;
beforeEach(async () => {
  chain = await MemoryChain.start(1024 * 1024);
  chain.disk.write(0, Buffer.alloc(256 * 1024, 0x11));
  await chain.take({ format: "raw" });
  chain.disk.write(0, Buffer.alloc(512, 0x22));
  point = (await chain.take({ format: "raw" })).manifest;
  repo = chain.repository.path;
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

async function hole(name: string, bytes: number): Promise<void> {
  await writeFile(chain.pathOf(point, name), "");
  await truncate(chain.pathOf(point, name), bytes);
}

/** Tells the command to end after a moment; undefined if it did not within another one. */
async function interrupted(...args: readonly string[]): Promise<Ran | "deaf"> {
  const run = startNbdpull(args);
  const ended = run.ended.then((ran) => ran ?? ("deaf" as const));
  const first = await Promise.race([ended, sleep(MOMENT_MS, "running" as const)]);
  if (first !== "running") return first;
  return await endedBySignal(run);
}

/** Tells the command to end; "deaf" if it did not within a moment. */
async function endedBySignal(run: Running): Promise<Ran | "deaf"> {
  run.kill("SIGTERM");
  const kill = setTimeout(() => run.kill("SIGKILL"), MOMENT_MS);
  return (await run.ended.finally(() => clearTimeout(kill))) ?? "deaf";
}

it.each(["verify", "restore"] as const)("%s doesn't read a kept file without end", async (command) => {
  await hole("nvram.fd", 15 * TiB);
  const file = {
    role: "nvram",
    file: "nvram.fd",
    source: "/vars.fd",
    length: 15 * TiB,
    sha256: "0".repeat(64),
  };
  await writeFile(chain.pathOf(point, "point.json"), JSON.stringify({ ...point, files: [file] }));
  const to = command === "restore" ? ["--to", join(chain.folder, "restored")] : [];
  const ran = await interrupted(command, repo, ...to);
  expect(ran).toMatchObject({ code: 3 });
  expect(ran === "deaf" ? "" : ran.stderr + ran.stdout).toContain("never more than");
});

it.each(["verify", "restore"] as const)("%s ends while it reads a map without end", async (command) => {
  await hole("vda.map", 15 * TiB);
  const to = command === "restore" ? ["--to", join(chain.folder, "restored")] : [];
  const run = startNbdpull([command, repo, ...to]);
  await untilOpen(run, "vda.map");
  await sleep(200);
  expect(await endedBySignal(run)).toMatchObject({ code: 143 });
});

it("more folders than there can be open files are no obstacle", async () => {
  for (let n = 0; n < 2_000; n += 1) await mkdir(join(repo, `domain${n}`));
  const run = startNbdpull(["points", repo], { inside: ["prlimit", "--nofile=256:256"] });
  expect(await run.ended).toMatchObject({ code: 0 });
});

it.each([
  ["a file", (lock: string) => writeFile(lock, "")],
  ["a folder with something in it", (lock: string) => mkdir(join(lock, "x"), { recursive: true })],
  ["a link", (lock: string) => symlink("/tmp", lock)],
])("%s in the place of the lock is an error that names it", async (_, make) => {
  const lock = join(repo, MemoryChain.domain, ".lock");
  await make(lock);
  await lutimes(lock, 0, 0);
  const ran = await nbdpull("prune", repo, "--keep-last", "1", "--json");
  expect([ran.code, ran.json()]).toMatchObject([3, { error: { code: "E_LINK", path: lock } }]);
  expect((await lstat(lock)).mtimeMs).toBe(0);
});

it("a journal with ten thousands of points and merges takes no longer than its length", async () => {
  const idAt = (n: number): string =>
    new Date(Date.UTC(2020, 0, 1) + n).toISOString().replaceAll(/[-:]/g, "");
  const drop = Array.from({ length: 60_000 }, (_, n) => idAt(n));
  const merge = { child: point.id, dropped: [drop.at(-1)], base: null, file: "", digests: null, map: null };
  const merges = Array.from({ length: 20_000 }, (_, n) => ({ ...merge, disk: `d${n}`, stale: [] }));
  const journal = { format: "nbdpull-prune", version: 1, phase: "overwrite", drop, merges, sync: false };
  const folder = join(repo, MemoryChain.domain, ".prune");
  await mkdir(folder);
  await writeFile(join(folder, "journal.json"), JSON.stringify(journal));
  // Seconds of processor time, however busy the machine is. It took forty when each was compared with each.
  const run = startNbdpull(["points", repo], { inside: ["prlimit", "--cpu=20:20"] });
  expect(await run.ended).toMatchObject({ code: 0 });
});
