/** The same cause has the same code, exit code and form in every command that meets it. */
import { mkdir, open } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { freshPaths } from "../support/fresh.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull } from "../support/nbdpull.js";

const SIZE = 1024 * 1024;
const NO_POINT = "20200101T000000.000Z";

interface Where {
  readonly repo: string;
  readonly domain: string;
  readonly at: string;
}

/** How each command that reads a repository names a point of it. */
const COMMANDS: Readonly<Record<string, (where: Where) => readonly string[]>> = {
  points: ({ repo, domain }) => [repo, domain],
  diff: ({ repo, domain, at }) => [repo, domain, at, "latest"],
  restore: ({ repo, domain, at }) => [repo, domain, "--at", at, "--to", fresh("restored")],
  verify: ({ repo, domain, at }) => [repo, domain, "--at", at],
  repair: ({ repo, domain }) => [repo, domain],
  copy: ({ repo, domain }) => [repo, fresh("copied"), domain, "--create"],
  prune: ({ repo, domain }) => [repo, domain, "--keep-last", "1"],
  forget: ({ repo, domain }) => [repo, domain, "--force"],
  serve: ({ repo, domain, at }) => [repo, domain, "--at", at, "--socket", fresh("served")],
  mount: ({ repo, domain, at }) => [repo, domain, fresh("mounted"), "--at", at],
  rehearse: ({ repo, domain, at }) => [repo, domain, "--at", at],
  report: ({ repo }) => [repo],
  stats: ({ repo }) => [repo],
};
const ALL = Object.keys(COMMANDS);
const OF_A_POINT = ["diff", "restore", "verify", "serve", "mount", "rehearse"];

let chain: MemoryChain;
const fresh = freshPaths();
const inside = (name: string): string => join(chain.folder, name);
beforeAll(async () => {
  chain = await MemoryChain.start(SIZE);
  chain.disk.write(0, Buffer.alloc(SIZE, 1));
  await chain.take();
  await mkdir(inside("none"));
  expect((await nbdpull("init", inside("empty"))).code).toBe(0);
});
afterAll(async () => {
  await chain[Symbol.asyncDispose]();
});

type Told = readonly [command: string, exitCode: number, code: string | undefined];

interface Document {
  readonly version?: number;
  readonly error?: { readonly code: string };
  readonly repositories?: readonly { readonly error: { readonly code: string } | null }[];
}

/** Runs it with --json. The code is that of the document's error, or of the first repository's. */
async function run(command: string, args: readonly string[]): Promise<Told> {
  const { code, json } = await nbdpull(command, ...args, "--json");
  const documents = [json() as Document | readonly Document[]].flat();
  const versions = documents.map(({ version }) => version);
  // Those two print rows as nbdinfo does.
  const hasVersion = code !== 0 || !["map", "diff"].includes(command);
  expect([command, versions]).toEqual([command, versions.map(() => (hasVersion ? 1 : undefined))]);
  expect(versions).not.toEqual([]);
  const [{ error, repositories } = {}] = documents;
  return [command, code, (error ?? repositories?.[0]?.error)?.code];
}

async function each(commands: readonly string[], where: Partial<Where>): Promise<Told[]> {
  const whole = { repo: chain.repository.path, domain: MemoryChain.domain, at: "latest", ...where };
  const argsOf = (command: string): readonly string[] =>
    (COMMANDS[command]?.(whole) ?? []).filter((word) => word !== "");
  return await Promise.all(commands.map((command) => run(command, argsOf(command))));
}

const all = (commands: readonly string[], exitCode: number, code: string): Told[] =>
  commands.map((command) => [command, exitCode, code]);

describe("every command", () => {
  it("says in the same way that there is no repository, or an empty folder in its place", async () => {
    expect(await each(ALL, { repo: inside("nowhere") })).toEqual(all(ALL, 4, "E_NO_REPOSITORY"));
    expect(await each(["points", "prune"], { repo: inside("none") })).toEqual(
      all(["points", "prune"], 4, "E_NO_REPOSITORY"),
    );
  });

  it("says in the same way that there is no such domain", async () => {
    const named = ALL.filter((command) => !["report", "stats"].includes(command));
    expect(await each(named, { domain: "nobody" })).toEqual(all(named, 4, "E_NO_DOMAIN"));
  });

  it("says in the same way that there is no such point", async () => {
    expect(await each(OF_A_POINT, { at: NO_POINT })).toEqual(all(OF_A_POINT, 4, "E_NO_POINT"));
  });

  it("refuses a repository without points where it needs one", async () => {
    const needs = ["restore", "rehearse"];
    expect(await each(needs, { repo: inside("empty"), domain: "" })).toEqual(all(needs, 4, "E_NO_DOMAIN"));
    const named = [...needs, "diff", "serve", "mount"];
    expect(await each(named, { repo: inside("empty") })).toEqual(all(named, 4, "E_NO_DOMAIN"));
  });

  it("finds damage with exit code 3, whatever it was looking for", async () => {
    await using damaged = await chain.copy();
    await using image = await open(damaged.file(0), "r+");
    await image.write("X", 200_000);
    const where = { repo: damaged.repository.path };
    const codes = async (commands: readonly string[]): Promise<readonly (readonly [string, number])[]> =>
      (await each(commands, where)).map(([command, code]) => [command, code]);
    // The verify notes what it has found, which the others tell then.
    for (const commands of [["restore"], ["verify"], ["points", "report"], ["copy", "repair"]]) {
      expect(await codes(commands)).toEqual(commands.map((command) => [command, 3]));
    }
  });

  it("has the version of its document, or of each entry of a list", async () => {
    const done = [
      ["info", chain.uri],
      ["map", chain.uri],
      ["pull", chain.uri, fresh("pulled")],
      ["init", fresh("new")],
      ["completion", "bash"],
      ...["points", "stats", "report", "verify", "repair"].map((command) => [command, chain.repository.path]),
      ["prune", chain.repository.path, "--keep-last", "9", "--dry-run"],
      ["restore", chain.repository.path, "--to", fresh("whole")],
      ["copy", chain.repository.path, fresh("copy"), "--create"],
    ] as const;
    const told = await Promise.all(done.map(([command, ...args]) => run(command, args)));
    expect(told).toEqual(done.map(([command]) => [command, 0, undefined]));
  });
});
