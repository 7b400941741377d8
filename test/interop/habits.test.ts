/** A word that is wrong, and what is said of it; what need not be said each time. */
import { chmod, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { shareOfToday } from "../../bin/share-of-points.js";
import { MemoryChain } from "../support/memory-chain.js";
import { finished, nbdpull, type Ran, startNbdpull } from "../support/nbdpull.js";
import { SKIP_WITHOUT_ROOT } from "../support/tools.js";

const SIZE = 256 * 1024;

let chain: MemoryChain;
let repo: string;
beforeAll(async () => {
  chain = await MemoryChain.start(SIZE);
  repo = chain.repository.path;
  await chain.take();
  await chain.take();
});
afterAll(async () => {
  await chain?.[Symbol.asyncDispose]();
});

const at = (name: string): string => join(chain.folder, name);
const withEnv = (env: Record<string, string>, ...args: string[]): Promise<Ran> =>
  finished(startNbdpull(args, { env }));

describe("a wrong word", () => {
  it.each([
    ["a command", ["bakcup"], 2, "E_USAGE: unknown command 'bakcup'", "backup"],
    [
      "an option",
      ["backup", "--to", "REPO", "--exclud", "vda"],
      2,
      "E_USAGE: unknown option '--exclud'",
      "--exclude",
    ],
    ["a domain", ["restore", "REPO", "gust", "--to", "OUT"], 4, "E_NO_DOMAIN", "guest"],
    ["a disk", ["restore", "REPO", "--disk", "vad", "--to", "OUT"], 4, "E_NO_DISK", "vda"],
    ["a repository", ["points", "guest", "REPO"], 4, "E_NO_REPOSITORY", "nbdpull points REPO guest"],
  ])("that is %s is answered with the nearest right one", async (_, words, code, error, meant) => {
    const own = (text: string): string => text.replace("REPO", repo).replace("OUT", at("out"));
    const ran = await nbdpull(...words.map(own));
    expect([ran.code, ran.stdout]).toEqual([code, ""]);
    expect(ran.stderr).toContain(`nbdpull: ${error}`);
    expect(ran.stderr).toContain(`(Did you mean ${own(meant)}?`);
  });

  it("that is a point's id is answered likewise, and in JSON as a hint", async () => {
    const [, { id = "" } = {}] = chain.points;
    const ran = await nbdpull(
      "restore",
      repo,
      "guest",
      "--at",
      id.replace(/.Z$/, "xZ"),
      "--to",
      at("x"),
      "--json",
    );
    expect([ran.code, ran.json()]).toMatchObject([
      expect.any(Number),
      { error: { code: expect.stringMatching(/E_(NO|BAD)_POINT/) } },
    ]);
  });
});

describe("an option whose value may be left out", () => {
  it("takes the next word where that can be nothing else", async () => {
    const zstd = await nbdpull(
      "pull",
      chain.uri,
      at("a.qcow2"),
      "--compress",
      "deflate",
      "--digests",
      "xxh64",
    );
    expect([zstd.code, zstd.stderr]).toEqual([0, ""]);
    const define = await nbdpull("restore", repo, "guest", "--to", at("x"), "--define", "copy");
    expect([define.code, define.stderr]).toEqual([2, expect.stringContaining("--define=copy)")]);
    const frozen = await nbdpull("backup", "--freeze", "/,/var", "--to", repo);
    expect(frozen.stderr).toContain("E_DOMAIN: name a domain");
  });
});

describe("settings", () => {
  const config = async (name: string, ...lines: string[]): Promise<string> => {
    await writeFile(at(name), lines.join("\n"), { mode: 0o600 });
    return at(name);
  };

  it("name the repository in the environment or in a file, and the command wins", async () => {
    const listed = await withEnv({ NBDPULL_REPOSITORY: repo }, "points", "guest");
    expect([listed.code, listed.stdout]).toEqual([0, expect.stringContaining("guest: 2 points")]);
    const file = await config("repo.toml", `repository = "${repo}"`);
    expect((await nbdpull("points", "--config", file)).stdout).toContain("guest: 2 points");
    expect((await withEnv({ NBDPULL_CONFIG: file }, "verify")).code).toBe(0);
    const other = await withEnv({ NBDPULL_REPOSITORY: repo }, "points", at("nowhere"));
    expect([other.code, other.stderr]).toEqual([4, expect.stringContaining(at("nowhere"))]);
    const none = await nbdpull("points");
    expect([none.code, none.stderr]).toEqual([2, expect.stringContaining("NBDPULL_REPOSITORY")]);
  });

  it("are the options' values unless the command has others: it wins over the environment, and that over the file", async () => {
    const file = await config("keep.toml", `repository = "${repo}"`, "keep-last = 5", "keep-daily = 3");
    const plan = async (env: Record<string, string>, ...args: string[]): Promise<string> => {
      const ran = await withEnv(env, "prune", "--config", file, "--dry-run", ...args);
      expect([ran.code, ran.stderr]).toEqual([0, ""]);
      return ran.stdout;
    };
    expect(await plan({})).toContain("would drop 0 of 2");
    // Rules in the command replace those of the file as a whole.
    expect(await plan({}, "--keep-last", "1")).toContain("would drop 1 of 2");
    expect(await plan({ NBDPULL_KEEP_LAST: "1" })).toContain("would drop 1 of 2");
  });

  it("that are mistyped, or make no sense, are errors before anything is done", async () => {
    for (const [line, message] of [
      ["compres = 'zstd'", "there is no setting compres (Did you mean compress?)"],
      ["keep-last = 'many'", "keep-last: many: It has to be a whole number"],
      ["strict = 'perhaps'", "strict: give true or false"],
      ["[prune]", "there is no setting prune"],
      ["repository = ", "line 1: "],
    ] as const) {
      const file = await config("wrong.toml", line);
      const ran = await nbdpull("prune", repo, "--keep-last", "1", "--config", file, "--json");
      expect([line, ran.code, ran.json()]).toEqual([
        line,
        2,
        {
          version: 1,
          error: expect.objectContaining({ code: "E_CONFIG", message: expect.stringContaining(message) }),
        },
      ]);
    }
    const missing = await nbdpull("points", repo, "--config", at("missing.toml"));
    expect([missing.code, missing.stderr]).toEqual([2, expect.stringContaining("there is no such file")]);
    const variable = await withEnv({ NBDPULL_KEEP_LAST: "x" }, "prune", repo);
    expect([variable.code, variable.stderr]).toEqual([2, expect.stringContaining("NBDPULL_KEEP_LAST: x")]);
    expect(await chain.repository.pointIds("guest")).toHaveLength(2);
  });

  it.skipIf(SKIP_WITHOUT_ROOT)("are not taken from a file that others could have written", async () => {
    const file = await config("open.toml", `repository = "${repo}"`);
    await chmod(file, 0o666);
    const open = await nbdpull("points", "--config", file);
    expect([open.code, open.stderr]).toEqual([4, expect.stringContaining("E_CONFIG_OTHERS")]);
    await mkdir(at("theirs"));
    await writeFile(at("theirs/c.toml"), "");
    await execa("chown", ["nobody", at("theirs")]);
    const theirs = await nbdpull("points", repo, "--config", at("theirs/c.toml"));
    expect([theirs.code, theirs.stderr]).toEqual([4, expect.stringContaining("E_CONFIG_OTHERS")]);
  });
});

describe("a share of the points", () => {
  it("is another one every day, and in as many days every point's turn comes once", () => {
    const ids = Array.from({ length: 100 }, (_, index) => `2026112${index}`);
    const days = Array.from({ length: 7 }, (_, day) =>
      shareOfToday("web", ids, 7, new Date(2026, 2, 27 + day, 1)),
    );
    expect(days.flat().sort()).toEqual(ids.sort());
    expect(Math.max(...days.map(({ length }) => length))).toBeLessThan(30);
  });

  it("is what verify reads", async () => {
    const ran = await nbdpull("verify", repo, "--share", "1", "--json");
    expect(ran.json()).toMatchObject({ damaged: false, points: [{}, {}] });
    const wrong = await nbdpull("verify", repo, "--share", "2", "--at", "latest");
    expect([wrong.code, wrong.stderr]).toEqual([2, expect.stringContaining("--share is of all points")]);
  });
});

it("each command's help has an example, and says which options are required", async () => {
  const help = await nbdpull("restore", "--help");
  expect(help.stdout).toMatch(/\nExamples:\n {2}nbdpull restore /);
  expect(help.stdout.replaceAll(/\s+/g, " ")).toMatch(/--to <target> .*? \(required\)/);
});
