/** What need not be said each time: settings of the environment and of a file, and which of them counts. */
import { chmod, mkdir, writeFile } from "node:fs/promises";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { freshPaths } from "../support/fresh.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, type Ran, runNbdpull } from "../support/nbdpull.js";
import { SKIP_WITHOUT_ROOT } from "../support/tools.js";

let chain: MemoryChain;
let repo: string;
beforeAll(async () => {
  chain = await MemoryChain.start(256 * 1024);
  repo = chain.repository.path;
  await chain.take();
  await chain.take();
});
afterAll(async () => {
  await chain?.[Symbol.asyncDispose]();
});

const at = freshPaths();
const withEnv = (env: Record<string, string>, ...args: string[]): Promise<Ran> => runNbdpull(args, { env });

let configs = 0;
async function config(...lines: string[]): Promise<string> {
  configs += 1;
  const path = at(`config-${configs}.toml`);
  await writeFile(path, lines.join("\n"), { mode: 0o600 });
  return path;
}

describe("settings", () => {
  it("name the repository in the environment or in a file, and the command wins", async () => {
    const listed = await withEnv({ NBDPULL_REPOSITORY: repo }, "points", "guest");
    expect([listed.code, listed.stdout]).toEqual([0, expect.stringContaining("guest: 2 points")]);
    const file = await config(`repository = "${repo}"`);
    expect((await nbdpull("points", "--config", file)).stdout).toContain("guest: 2 points");
    expect((await withEnv({ NBDPULL_CONFIG: file }, "verify")).code).toBe(0);
    const other = await withEnv({ NBDPULL_REPOSITORY: repo }, "points", at("nowhere"));
    expect([other.code, other.stderr]).toEqual([4, expect.stringContaining(at("nowhere"))]);
    const none = await nbdpull("points");
    expect([none.code, none.stderr]).toEqual([2, expect.stringContaining("NBDPULL_REPOSITORY")]);
  });

  it("are the options' values unless the command has others: it wins over the environment, and that over the file", async () => {
    const file = await config(`repository = "${repo}"`, "keep-last = 5", "keep-daily = 3");
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
      const file = await config(line);
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
      const relative = await nbdpull("prune", "--config", await config(`${name} = "backups"`));
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
    const file = await config(`repository = "${repo}"`);
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
