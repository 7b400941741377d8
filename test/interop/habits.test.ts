/** A word that is wrong, and what is said of it; what need not be said each time. */
import { chmod, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { fillInDefaults } from "../../bin/options.js";
import { shareOfToday } from "../../bin/share-of-points.js";
import { DAMAGE_RECORD } from "../../src/backup/repository/damage-record.js";
import { freshPaths } from "../support/fresh.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, type Ran, runNbdpull } from "../support/nbdpull.js";
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

const at = freshPaths();
const withEnv = (env: Record<string, string>, ...args: string[]): Promise<Ran> => runNbdpull(args, { env });

describe("a wrong word", () => {
  it.each([
    ["a command", ["bakcup"], 2, "E_USAGE: unknown command 'bakcup'", "backup"],
    ["another program's command", ["snapshots", "REPO"], 2, "E_USAGE: unknown command 'snapshots'", "points"],
    ["a command that is an option", ["version"], 2, "E_USAGE: unknown command 'version'", "--version"],
    ["borg's word for a backup", ["create", "REPO"], 2, "E_USAGE: unknown command 'create'", "backup"],
    ["borg's word for one point less", ["delete", "REPO"], 2, "E_USAGE: unknown command 'delete'", "prune"],
    ["another word for that", ["remove", "REPO"], 2, "E_USAGE: unknown command 'remove'", "prune"],
    [
      "an option",
      ["backup", "--to", "REPO", "--exclud", "vda"],
      2,
      "E_USAGE: unknown option '--exclud'",
      "--exclude",
    ],
    [
      "the name of a required option",
      ["backup", "guest", "--too", "REPO"],
      2,
      "E_USAGE: unknown option '--too'",
      "--to",
    ],
    [
      "a path without its option",
      ["restore", "REPO", "guest", "OUT"],
      2,
      "E_USAGE: required option '--to <target>' not specified",
      "--to OUT",
    ],
    [
      "the name of an option, and not a word behind --",
      ["backup", "guest", "--too", "REPO", "--", "--never"],
      2,
      "E_USAGE: unknown option '--too'",
      "--to",
    ],
    [
      "a path without its option, and no word behind -- is one",
      ["restore", "REPO", "--", "-guest", "OUT"],
      2,
      "E_USAGE: required option '--to <target>' not specified",
      "--to OUT",
    ],
    [
      "a path without its option, in front of a disk and its image",
      ["import", "web.qcow2", "REPO", "vda=./web.qcow2"],
      2,
      "E_USAGE: required option '--to <repo>' not specified",
      "--to REPO",
    ],
    ["another program's address", ["init", "s3:bucket/x"], 2, "E_SCHEME", "s3://bucket/x"],
    ["a domain", ["restore", "REPO", "gust", "--to", "OUT"], 4, "E_NO_DOMAIN", "guest"],
    ["a disk", ["restore", "REPO", "--disk", "vad", "--to", "OUT"], 4, "E_NO_DISK", "vda"],
    ["a repository", ["points", "guest", "REPO"], 4, "E_NO_REPOSITORY", "nbdpull points REPO guest"],
  ])("that is %s is answered with the nearest right one", async (_, words, code, error, meant) => {
    const own = (text: string): string => text.replace("REPO", repo).replace("OUT", at("out"));
    const ran = await nbdpull(...words.map(own));
    expect([ran.code, ran.stdout]).toEqual([code, ""]);
    expect(ran.stderr).toContain(`nbdpull: ${error}`);
    expect(ran.stderr).toContain(`(Did you mean ${own(meant)}?`);
    const [command = "", ...others] = words.map(own);
    const { error: told } = (await nbdpull(command, "--json", ...others)).json() as {
      error: Record<string, string>;
    };
    expect(told["hint"]).toContain(`(Did you mean ${own(meant)}?`);
    expect(`${told["code"]}: ${told["message"]}`).toContain(error);
    expect(told["message"]).not.toMatch(/^error|\n/);
  });

  it.each([
    ["pull", "nbd://localhost/x", "s3://bucket/x.raw"],
    ["restore", "REPO", "--to", "s3://bucket/x"],
  ])("that is an address where an image goes is offered no address: %s", async (...words) => {
    const ran = await nbdpull(...words.map((word) => word.replace("REPO", repo)));
    expect([ran.code, ran.stdout]).toEqual([2, ""]);
    expect(ran.stderr).toMatch(
      /E_SCHEME: s3:.* images are written to paths of this host only: mount it here/,
    );
    expect(ran.stderr).not.toMatch(/object store|Did you mean/);
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
  it("is shown so by the help of each command", async () => {
    const filled: string[] = [];
    for (const command of ["attach", "backup", "import", "pull", "restore", "run"]) {
      const { stdout } = await nbdpull(command, "--help");
      const options = [...stdout.matchAll(/^ {2}(--[\w-]+)(.*?)(?: {2}|$)/gm)];
      for (const [, flag = "", value = ""] of options) {
        if (fillInDefaults([flag])[0] !== flag) filled.push(`${command} ${flag}${value}`);
      }
    }
    expect(filled).toContain("pull --digests [algorithm]");
    expect(filled.filter((each) => !each.endsWith("]"))).toEqual([]);
  });

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
          error: expect.objectContaining({
            code: "E_CONFIG",
            message: expect.stringContaining(message),
            ...(message.includes("Did you mean") ? { hint: "(Did you mean compress?)" } : {}),
          }),
        },
      ]);
    }
    const missing = await nbdpull("repair", repo, "--config", at("missing.toml"));
    expect([missing.code, missing.stderr]).toEqual([2, expect.stringContaining("there is no such file")]);
    expect(missing.stderr).toContain("--config /dev/null");
    for (const name of ["repository", "metrics"]) {
      const relative = await nbdpull(
        "prune",
        "--config",
        await config("relative.toml", `${name} = "backups"`),
      );
      expect([relative.code, relative.stderr]).toEqual([
        2,
        expect.stringContaining(`${name}: give an absolute path`),
      ]);
    }
    const variable = await withEnv({ NBDPULL_KEEP_LAST: "x" }, "prune", repo);
    expect([variable.code, variable.stderr]).toEqual([2, expect.stringContaining("NBDPULL_KEEP_LAST: x")]);
    expect(await chain.repository.pointIds("guest")).toHaveLength(2);
  });

  it.skipIf(SKIP_WITHOUT_ROOT)("are not taken from a file that others could have written", async () => {
    const file = await config("open.toml", `repository = "${repo}"`);
    await chmod(file, 0o666);
    const open = await nbdpull("prune", "--config", file);
    expect([open.code, open.stderr]).toEqual([4, expect.stringContaining("E_CONFIG_OTHERS")]);
    await mkdir(at("theirs"));
    await writeFile(at("theirs/c.toml"), "");
    await execa("chown", ["nobody", at("theirs")]);
    const theirs = await nbdpull("prune", repo, "--config", at("theirs/c.toml"));
    expect([theirs.code, theirs.stderr]).toEqual([4, expect.stringContaining("E_CONFIG_OTHERS")]);
  });
});

describe("settings that are no help", () => {
  const config = async (...lines: string[]): Promise<string> => {
    const path = at(`${lines.join("").replaceAll(/\W/g, "")}.toml`.slice(-60));
    await writeFile(path, lines.join("\n"), { mode: 0o600 });
    return path;
  };

  it("keep no command that only reads from its work", async () => {
    const wrong = await config(`repository = "${repo}"`, "compres = 'zstd'");
    const listed = await nbdpull("points", repo, "--config", wrong);
    expect([listed.code, listed.stdout]).toEqual([0, expect.stringContaining("guest: 2 points")]);
    expect(listed.stderr).toMatch(/^warning: settings are left out: .*there is no setting compres/);
    const restored = await nbdpull("restore", repo, "guest", "--to", at("restored"), "--config", wrong);
    expect(restored.code).toBe(0);
    expect((await nbdpull("copy", repo, at("copied"), "--create", "--config", wrong)).code).toBe(0);
    // Standard output is the disk's.
    const nowhere = `nbd+unix:///vda?socket=${at("nowhere.sock")}`;
    const pulled = await nbdpull("pull", nowhere, "-", "--json", "--config", wrong);
    expect([pulled.code, pulled.stdout]).toEqual([1, ""]);
    // Nothing is in the way here.
    expect((await nbdpull("prune", repo, "--keep-last", "2", "--config", "/dev/null")).code).toBe(0);
  });

  it("as they are for another repository, drop none of its points", async () => {
    const elsewhere = await config('repository = "/srv/elsewhere"', "keep-last = 1");
    const other = await nbdpull("prune", repo, "--config", elsewhere);
    expect([other.code, other.stderr]).toEqual([2, expect.stringContaining("E_KEEP_NOTHING")]);
    expect(other.stderr).toContain("are for /srv/elsewhere");
    const nameless = await withEnv({ NBDPULL_KEEP_LAST: "1" }, "prune", repo);
    expect([nameless.code, nameless.stderr]).toEqual([2, expect.stringContaining("E_KEEP_NOTHING")]);
    const none = await withEnv({ NBDPULL_KEEP_LAST: "1" }, "prune");
    expect(none.stderr).toContain("E_USAGE: which repository?");
    const env = { NBDPULL_REPOSITORY: repo };
    const both = await withEnv(env, "prune", "--config", elsewhere);
    expect([both.code, both.stderr]).toEqual([2, expect.stringContaining("E_KEEP_NOTHING")]);
    expect(await chain.repository.pointIds("guest")).toHaveLength(2);
    // The same place by another path is no other repository.
    const same = await withEnv({ NBDPULL_KEEP_LAST: "1", ...env }, "prune", `${repo}/../repo/.`, "--dry-run");
    expect([same.code, same.stdout]).toEqual([0, expect.stringContaining("would drop 1 of 2")]);
  });

  it("are undone by what the command or the environment says", async () => {
    const all = await config(`repository = "${repo}"`, "all = true", "skip = ['x']", "strict = true");
    const named = await nbdpull("run", "guest", "--connect", "test:///nowhere", "--config", all);
    expect(named.stderr).not.toMatch(/not both|--skip is for/);
    const some = await config(`repository = "${repo}"`, "domains = ['a']");
    const every = await nbdpull("run", "--all", "--connect", "test:///nowhere", "--config", some);
    expect(every.stderr).not.toContain("not both");
    const strict = await config(`compress = true`, "freeze = true", "strict = true", "color = 'red'");
    expect((await nbdpull("points", repo, "--strict", "--config", strict)).code).toBe(5);
    const zero = await config("strict = true", `repository = "${repo}"`);
    const env = { NBDPULL_STRICT: "0", NBDPULL_COLOR: "red" };
    expect((await withEnv(env, "points", "--config", zero)).code).toBe(0);
    expect((await withEnv({ NBDPULL_COLOR: "red" }, "points", "--config", zero)).code).toBe(5);
  });

  it("name the repository of report, stats and diff, too", async () => {
    const env = { NBDPULL_REPOSITORY: repo };
    const [{ id: from = "" } = {}] = chain.points;
    expect((await withEnv(env, "report")).stdout).toContain("guest");
    expect((await withEnv(env, "stats", "guest")).stdout).toContain("guest");
    expect((await withEnv(env, "diff", "guest", from, "latest")).stdout).toContain("no difference");
    const few = await withEnv(env, "diff", "guest", "latest");
    expect([few.code, few.stderr]).toEqual([2, expect.stringContaining("diff takes REPO DOMAIN FROM TO")]);
  });
});

it("metrics of verify and prune are only about a whole repository, and know of damage that was found before", async () => {
  const file = at("night.prom");
  const code = async (job: string): Promise<string | undefined> =>
    new RegExp(`^nbdpull_${job}_exit_code\\{.*\\} (\\d)$`, "m").exec(
      await readFile(file, "utf8").catch(() => ""),
    )?.[1];
  for (const args of [
    ["verify", repo, "guest"],
    ["verify", repo, "--at", "latest"],
    ["prune", repo, "--keep-last", "2", "--dry-run"],
    ["prune", repo, "guest", "--keep-last", "2"],
  ]) {
    expect((await nbdpull(...args, "--metrics", file)).code).toBe(0);
    expect([await code("verify"), await code("prune")]).toEqual([undefined, undefined]);
  }
  expect((await nbdpull("verify", repo, "--metrics", file)).code).toBe(0);
  expect(await code("verify")).toBe("0");
  // A night in which the repository is not mounted is told there, too.
  const unmounted = ["run", "guest", "--to", at("unmounted"), "--verify-share", "1", "--metrics", file];
  const night = await nbdpull(...unmounted, "--json");
  expect([night.code, night.json()]).toMatchObject([4, { backup: { error: { code: "E_NO_REPOSITORY" } } }]);
  expect(await code("run")).toBe("4");
  const ids = await chain.repository.pointIds("guest");
  // A share so small that no point's turn is today.
  const share = Array.from({ length: 900 }, (_, index) => index + 100).find(
    (shares) => shareOfToday("guest", ids, shares, new Date()).length === 0,
  );
  const [first = ""] = ids;
  const record = join(repo, "guest", first, DAMAGE_RECORD);
  await writeFile(record, "{}");
  const ran = await nbdpull("verify", repo, "--share", String(share), "--metrics", file);
  expect([ran.code, ran.stdout]).toEqual([0, "no point is due for verification today"]);
  expect(await code("verify")).toBe("3");
  await rm(record);
});

it("a report that can't be written is told of before a night's work, which is done all the same", async () => {
  await writeFile(at("notes.html"), "mine");
  for (const report of [at("no/such/folder.html"), at("notes.html")]) {
    const words = ["run", "guest", "--to", repo, "--connect", "test:///nowhere", "--verify-share", "1"];
    const ran = await nbdpull(...words, "--report", report, "--json");
    expect([ran.code, ran.json()]).toMatchObject([
      4,
      { report: { error: { code: "E_REPORT_FILE" } }, verify: { damaged: false }, exitCode: 4 },
    ]);
    const errors = ran.stderr.split("\n").filter((line) => line.startsWith("nbdpull: "));
    expect(errors).toMatchObject([
      expect.stringContaining("E_REPORT_FILE: report: "),
      expect.stringContaining("backup: "),
    ]);
  }
});

it("a repository that can't be opened is none that isn't there", async () => {
  await mkdir(at("broken"), { mode: 0o700 });
  await writeFile(at("broken/nbdpull.json"), "no JSON", { mode: 0o600 });
  const doctor = await nbdpull("doctor", "--to", at("broken"));
  expect(doctor.stdout).toMatch(/^fail +repository /m);
  expect(doctor.stdout).not.toContain("there is no repository");
  const report = await nbdpull("report", at("broken"), at("unmounted"));
  expect([report.code, report.stdout]).toEqual([3, ""]);
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
    expect([wrong.code, wrong.stderr]).toEqual([2, expect.stringContaining("--share covers all points")]);
  });
});

it("the help lists the commands in the groups of docs/cli.md, and the same in each", async () => {
  const { stdout } = await nbdpull("--help");
  const help = [...stdout.matchAll(/^(\w[\w ]*):\n((?: {2}[a-z]+ .*\n)+)/gm)].map(([, group, lines = ""]) => [
    group,
    ...[...lines.matchAll(/^ {2}([a-z]+)/gm)].map(([, name]) => name).filter((name) => name !== "help"),
  ]);
  const page = await readFile(new URL("../../docs/cli.md", import.meta.url), "utf8");
  const tables = [...page.matchAll(/^\| ([A-Z][\w ]*) \| \|\n((?:\|.*\n)+)/gm)].map(
    ([, group, lines = ""]) => [
      group,
      ...[...lines.matchAll(/^\| \[`([a-z]+)`\]/gm)].map(([, name]) => name),
    ],
  );
  expect(help.map((group) => group.toSorted())).toEqual(tables.map((group) => group.toSorted()));
  expect(help.length).toBeGreaterThan(4);
});

it("each command's help has an example, and says which options are required", async () => {
  const help = await nbdpull("restore", "--help");
  expect(help.stdout).toMatch(/\nExamples:\n {2}nbdpull restore /);
  expect(help.stdout.replaceAll(/\s+/g, " ")).toMatch(/--to <target> .*? \(required\)/);
});
