/**
 * The folder in which Node keeps our compiled code: whoever can write to it decides what the command does.
 */
import {
  chmod,
  chown,
  mkdir,
  mkdtemp,
  readdir,
  realpath,
  rm,
  stat,
  symlink,
  truncate,
} from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { finished, startNbdpull } from "../support/nbdpull.js";
import { describeEachNode, NODE_VERSIONS } from "../support/nodes.js";
import { SKIP_WITHOUT_ROOT } from "../support/tools.js";

const STRANGER = 12_345;

describeEachNode("compiled code", (node, version) => {
  let home: string;
  beforeEach(async () => {
    // Not in /tmp, where everybody may write.
    home = await realpath(await mkdtemp(join(homedir(), ".nbdpull-home-")));
  });
  afterEach(async () => {
    await rm(home, { recursive: true, force: true });
  });

  /** Runs the command, which must do its work and say nothing else. */
  async function run(env: Readonly<Record<string, string>>): Promise<void> {
    const { code, stdout, stderr } = await finished(
      startNbdpull(["pull", "--help"], { node, env: { XDG_CACHE_HOME: "", ...env } }),
    );
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toContain("Usage: nbdpull pull");
  }
  const filesIn = (folder: string): Promise<string[]> => readdir(folder, { recursive: true });
  const canKeep = version !== NODE_VERSIONS[0];

  it("is kept in the user's cache folder, for this user alone, and harms nothing when it is damaged", async () => {
    await mkdir(join(home, ".cache", "nbdpull", "command-line-older.js"), { recursive: true, mode: 0o755 });
    // A folder of that name may be a repository: nothing but what is called like a build is removed from it.
    await mkdir(join(home, ".cache", "nbdpull", "web"));
    await run({ HOME: home });
    if (!canKeep) return expect(await filesIn(home)).toHaveLength(4);
    const [build = "", ...others] = (await readdir(join(home, ".cache", "nbdpull"))).sort();
    expect([build, others]).toEqual([expect.stringMatching(/^command-line-(?!older)/), ["web"]]);
    const folder = join(home, ".cache", "nbdpull", build);
    expect((await stat(folder)).mode & 0o777).toBe(0o700);
    const kept = (await filesIn(folder)).map((name) => join(folder, name));
    expect(kept.length).toBeGreaterThan(3);
    for (const path of kept) if ((await stat(path)).isFile()) await truncate(path, 100);
    await run({ HOME: home });
  });

  it("is kept in XDG_CACHE_HOME where that is set", async () => {
    await run({ HOME: "/nonexistent", XDG_CACHE_HOME: home });
    expect(await readdir(home)).toEqual(canKeep ? ["nbdpull"] : []);
  });

  it("is kept nowhere if there is no home", async () => {
    await run({ HOME: join(home, "missing") });
    expect(await readdir(home)).toEqual([]);
  });

  it.each<[string, (cache: string) => Promise<void>]>([
    ["everybody can write to the folder", (cache) => chmod(cache, 0o1777)],
    ["its group can write to the folder", (cache) => chmod(cache, 0o770)],
  ])("is kept nowhere if %s", async (_, open) => {
    const cache = join(home, ".cache");
    await mkdir(cache);
    await open(cache);
    await run({ HOME: home });
    expect(await readdir(cache)).toEqual([]);
  });

  it.skipIf(SKIP_WITHOUT_ROOT)(
    "of root is not kept in another user's home, nor behind a link of theirs",
    async () => {
      await mkdir(join(home, "theirs", "cache"), { recursive: true });
      await symlink(join(home, "theirs", "cache"), join(home, ".cache"));
      for (const path of ["theirs", "theirs/cache"]) await chown(join(home, path), STRANGER, STRANGER);
      await run({ HOME: home });
      await run({ HOME: join(home, "theirs") });
      expect(await filesIn(join(home, "theirs"))).toEqual(["cache"]);
    },
  );
});
