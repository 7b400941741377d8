/** `nbdpull forget`: a domain leaves its repository, whole, and nothing else does. */
import { cpSync } from "node:fs";
import { chmod, mkdir, readdir, rename, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { forgetDomain } from "../../src/backup/prune/forget.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { ageLocks } from "../support/left-by-prune.js";
import { MemoryChain } from "../support/memory-chain.js";
import { finished, nbdpull, type Ran, startNbdpull } from "../support/nbdpull.js";
import { startServing } from "../support/serving.js";
import { SKIP_WITHOUT_ROOT } from "../support/tools.js";

const DOMAIN = MemoryChain.domain;

let chain: MemoryChain;
beforeEach(async () => {
  chain = await MemoryChain.start(1024 ** 2);
  chain.disk.write(0, Buffer.alloc(300_000, 1));
  await chain.take();
  chain.disk.write(0, Buffer.alloc(100_000, 2));
  await chain.take();
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

const repo = (): string => chain.repository.path;
const forget = (...args: readonly string[]): Promise<Ran> => nbdpull("forget", repo(), ...args);
const ids = (): string[] => chain.points.map(({ id }) => id);

/** Another domain beside it, of which a full point and an increment are sound. */
async function otherDomain(): Promise<void> {
  cpSync(join(repo(), DOMAIN), join(repo(), "other"), { recursive: true, preserveTimestamps: true });
}

async function namesIn(path: string): Promise<string[]> {
  return (await readdir(path)).sort();
}

describe("nbdpull forget", () => {
  it("removes a domain and nothing else, once it is told that this is meant", async () => {
    await otherDomain();
    for (const args of [[DOMAIN], ["--all"]]) {
      const asked = await forget(...args);
      expect([asked.code, asked.stderr]).toEqual([2, expect.stringContaining("E_NOT_CONFIRMED")]);
    }
    for (const args of [[], [DOMAIN, "--all"], ["--all", "--uuid", "none"], ["--all", "--checkpoints"]]) {
      const wrong = await forget(...args, "--force");
      expect([wrong.code, wrong.stderr]).toEqual([2, expect.stringContaining("E_USAGE")]);
    }
    const tried = await forget(DOMAIN, "--dry-run");
    // As many bytes are stored as `points` says.
    const listed = (await nbdpull("points", repo(), DOMAIN)).stdout;
    const [, stored = "?"] = /: 2 points, (.* stored)/.exec(listed) ?? [];
    const told = new RegExp(`would forget 2 points, ${stored.replaceAll(".", "\\.")}, .* of space$`, "m");
    expect([tried.code, tried.stdout]).toEqual([0, expect.stringMatching(told)]);
    expect(await (await Repository.open(repo())).domains()).toEqual([DOMAIN, "other"]);

    await writeFile(join(repo(), DOMAIN, "notes.txt"), "mine");
    const ran = await forget(DOMAIN, "--force", "--json");
    expect([ran.code, ran.json()]).toEqual([
      0,
      {
        version: 1,
        dryRun: false,
        domains: [
          {
            domain: DOMAIN,
            points: ids(),
            uuids: [],
            bytes: expect.any(Number) as number,
            storedBytes: chain.points.reduce((sum, { disks }) => sum + (disks[0]?.storedBytes ?? 0), 0),
            left: ["notes.txt"],
            checkpoints: [],
          },
        ],
      },
    ]);
    expect(await namesIn(join(repo(), DOMAIN))).toEqual(["notes.txt"]);
    await rm(join(repo(), DOMAIN), { recursive: true });
    const again = await forget(DOMAIN, "--force");
    expect([again.code, again.stderr]).toEqual([4, expect.stringContaining("E_NO_DOMAIN")]);
    expect((await nbdpull("verify", repo())).code).toBe(0);
    expect((await forget("other", "--force")).code).toBe(0);
    expect(await namesIn(repo())).toEqual(["nbdpull.json"]);
  });

  it("shows no point of a domain once one is gone, wherever it is killed, and the next run finishes", async () => {
    const left: { readonly step: string; readonly path: string }[] = [];
    const onStep = (step: string): void => {
      const path = join(chain.folder, `left-${left.length}`);
      cpSync(repo(), path, { recursive: true });
      left.push({ step, path });
    };
    await forgetDomain({ repository: chain.repository, domain: DOMAIN, dryRun: false, onStep });
    expect(left.map(({ step }) => step)).toEqual([
      "journal",
      ...ids().map((id) => `drop ${id}`),
      "journal removed",
    ]);
    for (const { step, path } of left) {
      await ageLocks(join(path, DOMAIN));
      const repository = await Repository.open(path);
      expect([step, await repository.domains()]).toEqual([step, []]);
      const restored = await nbdpull("restore", path, DOMAIN, "--to", join(chain.folder, "restored"));
      expect([restored.code, restored.stderr]).toEqual([4, expect.stringMatching(/E_NO_(?:DOMAIN|POINT)/)]);
      await ageLocks(join(path, DOMAIN)).catch(() => undefined);
      const again = await nbdpull("forget", path, DOMAIN, "--force");
      if (step === "journal removed") {
        // All that is left is the lock.
        expect([step, again.code, again.stderr]).toEqual([step, 4, expect.stringContaining("E_NO_DOMAIN")]);
        const names = await namesIn(join(path, DOMAIN));
        expect(names.filter((name) => !/^\.(lock|holder-.*)$/.test(name))).toEqual([]);
      } else {
        expect([step, again.code]).toEqual([step, 0]);
        expect([step, await namesIn(path)]).toEqual([step, ["nbdpull.json"]]);
      }
    }
  });

  it("deletes no checkpoints before nothing can stop it any more, and leaves every point if that fails", async () => {
    const options = { repository: chain.repository, domain: DOMAIN, dryRun: false };
    const stop = new AbortController();
    const asked: string[] = [];
    const stopped = forgetDomain({
      ...{ ...options, signal: stop.signal },
      onStep: (step) => step === "journal" && stop.abort(new Error("stopped")),
      before: async () => void asked.push("stopped"),
    });
    await expect(stopped).rejects.toThrow("stopped");
    const refused = forgetDomain({
      ...options,
      before: async () => {
        asked.push("refused");
        throw new Error("a job runs");
      },
    });
    await expect(refused).rejects.toThrow("a job runs");
    expect(asked).toEqual(["refused"]);
    expect(await chain.repository.pointIds(DOMAIN)).toEqual(ids());
    expect((await nbdpull("verify", repo())).code).toBe(0);
  });

  it("waits for a reader, and finds no domain half removed meanwhile", async () => {
    const server = await startServing(repo(), DOMAIN, "--socket", join(chain.folder, "s.sock"));
    const run = startNbdpull(["forget", repo(), DOMAIN, "--force"]);
    await expect.poll(() => namesIn(join(repo(), DOMAIN))).toContain(".lock");
    expect(await chain.repository.pointIds(DOMAIN)).toEqual(ids());
    await server.stop();
    expect((await finished(run)).code).toBe(0);
    expect(await namesIn(repo())).toEqual(["nbdpull.json"]);
  });

  it("refuses a link that is called like a point, and a point on which a guest runs, and goes on with others", async () => {
    await otherDomain();
    const outside = join(chain.folder, "outside");
    await mkdir(outside);
    await writeFile(join(outside, "file"), "stays");
    await symlink(outside, join(repo(), "other", "20200101T000000.000Z"));
    const [newest = ""] = ids().slice(-1);
    const note = join(repo(), DOMAIN, newest, ".live.01234567-89ab-cdef-0123-456789abcdef.json");
    await writeFile(note, "{}");
    const live = await forget(DOMAIN, "--force");
    expect([live.code, live.stderr]).toEqual([4, expect.stringContaining("E_LIVE")]);
    await rm(note);
    const all = await forget("--all", "--force", "--json");
    expect([all.code, all.json()]).toEqual([
      3,
      expect.objectContaining({
        domains: [
          expect.objectContaining({ domain: DOMAIN, points: ids() }),
          { domain: "other", error: expect.objectContaining({ code: "E_LINK" }) as object },
        ],
      }),
    ]);
    expect(await namesIn(repo())).toEqual(["nbdpull.json", "other"]);
    expect(await namesIn(outside)).toEqual(["file"]);
    await rm(join(repo(), "other", "20200101T000000.000Z"));
    expect((await nbdpull("verify", repo())).code).toBe(0);
  });

  it("finds the one whose checkpoints go by its points, without a question to libvirt", async () => {
    const uuids = ["0ABCDEF0-89ab-cdef-0123-456789abcdef", "fedcba98-89ab-cdef-0123-456789abcdef"];
    const checkpoints = (...args: readonly string[]): Promise<Ran> =>
      forget(DOMAIN, "--checkpoints", "--force", "--connect", "test:///no-such-libvirt", ...args);
    const [one = "", other = ""] = ids();
    await chain.rewrite(one, { domain: { name: DOMAIN, uuid: uuids[0] ?? null } });
    // The increment is of the same domain.
    for (const args of [[], ["--uuid", "0abcdef0"], ["--uuid", "none"]]) {
      const ran = await checkpoints(...args, "--json");
      expect([args, ran.code, ran.json()]).toMatchObject([args, 0, { domain: DOMAIN, checkpoints: [] }]);
    }
    expect((await checkpoints("--uuid", "12345678")).code).not.toBe(0);
    await chain.rewrite(other, { domain: { name: DOMAIN, uuid: uuids[1] ?? null } });
    const which = await checkpoints();
    expect([which.code, which.stderr]).toEqual([2, expect.stringContaining("E_WHICH_DOMAIN")]);
    expect((await checkpoints("--uuid", "fedcba98")).code).toBe(0);
  });

  it.skipIf(SKIP_WITHOUT_ROOT)(
    "believes nothing that others may have written about whose checkpoints go",
    async () => {
      await chmod(repo(), 0o777);
      const ran = await forget(DOMAIN, "--checkpoints", "--force");
      expect([ran.code, ran.stderr]).toEqual([4, expect.stringContaining("E_STRANGERS")]);
    },
  );

  it("takes one of several domains of a folder only where its UUID is given", async () => {
    const uuid = "01234567-89ab-cdef-0123-456789abcdef";
    const earlier = "fedcba98-89ab-cdef-0123-456789abcdef";
    for (const id of ids()) await chain.rewrite(id, { domain: { name: DOMAIN, uuid: earlier } });
    await chain.take({ full: true, domain: { name: DOMAIN, uuid } });
    const own = `${DOMAIN}@${uuid.slice(0, 8)}`;
    expect(await (await Repository.open(repo())).domains()).toEqual([DOMAIN, own]);
    // Version 0.1 put them into one folder.
    const id = chain.points.at(-1)?.id ?? "";
    await rename(join(repo(), own, id), join(repo(), DOMAIN, id));
    await rm(join(repo(), own), { recursive: true });
    const which = await forget(DOMAIN, "--force");
    expect([which.code, which.stderr]).toEqual([2, expect.stringContaining("E_WHICH_DOMAIN")]);
    const one = await forget(DOMAIN, "--uuid", uuid, "--force", "--json");
    expect([one.code, one.json()]).toMatchObject([0, { domains: [{ points: [id], uuids: [uuid] }] }]);
    expect(await chain.repository.pointIds(DOMAIN)).toEqual(ids().slice(0, -1));
    expect((await nbdpull("verify", repo())).code).toBe(0);
  });
});
