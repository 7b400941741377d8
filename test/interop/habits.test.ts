/** A word that is wrong, and what is said of it; help, and what a night is told before its work begins. */
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { fillInDefaults } from "../../bin/options.js";
import { shareOfToday } from "../../bin/share-of-points.js";
import { DAMAGE_RECORD } from "../../src/backup/repository/damage-record.js";
import { freshPaths } from "../support/fresh.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull } from "../support/nbdpull.js";

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
