import { cp, readdir } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { chooseDomain } from "../../../src/backup/repository/choose-domain.js";
import { choosePoint } from "../../../src/backup/repository/choose-point.js";
import { domainFolder } from "../../../src/backup/repository/domain-folder.js";
import { verifyPoints } from "../../../src/backup/verify/verify.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { nbdpull } from "../../support/nbdpull.js";

const NAME = MemoryChain.domain;
const [A, B, C] = [
  "aaaaaaaa-1111-4111-8111-111111111111",
  "bbbbbbbb-2222-4222-8222-222222222222",
  "bbbbbbbb-3333-4333-8333-333333333333",
];

/** The id of no point. */
const NEVER = "20200115T000000.000Z";

let chain: MemoryChain;
beforeEach(async () => {
  chain = await MemoryChain.start(256 * 1024);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

const warnings: string[] = [];
async function take(uuid: string | null, name = NAME): Promise<string> {
  warnings.length = 0;
  const taken = await chain.take({
    full: true,
    domain: { name, uuid },
    onWarning: (message) => warnings.push(message),
  });
  return `${taken.domainFolder}/${taken.manifest.id}`;
}

async function folders(): Promise<string[]> {
  return (await readdir(chain.repository.path)).filter((name) => name !== "nbdpull.json").sort();
}

/** Points of A and B in one folder, as version 0.1 made them: A, A, B, B. The second one of A has no UUID. */
async function takeMixture(): Promise<string[]> {
  for (const full of [true, false, true, false]) await chain.take({ full });
  const ids = chain.points.map(({ id }) => id);
  for (const [i, uuid] of [A, null, B, B].entries()) {
    await chain.rewrite(ids[i] ?? "", { domain: { name: NAME, uuid } });
  }
  return ids;
}

describe("the folder of a domain's next point", () => {
  it("is that of its name, or one of its own if another domain of that name was there before", async () => {
    expect(await take(A)).toMatch(/^guest\//);
    expect(warnings).toEqual([]);
    expect(await take(B)).toMatch(/^guest@bbbbbbbb\//);
    expect(warnings).toEqual([expect.stringContaining(`UUID ${B} go to guest@bbbbbbbb`)]);
    expect(await take(A)).toMatch(/^guest\//);
    expect(await take(B)).toMatch(/^guest@bbbbbbbb\//);
    expect(warnings).toEqual([]);
    expect(await take(C)).toMatch(new RegExp(`^guest@${C}/`));
    expect(await take(C.toUpperCase())).toMatch(new RegExp(`^guest@${C}/`));
    expect(await folders()).toEqual([NAME, "guest@bbbbbbbb", `guest@${C}`]);
  });

  it("is the one that has points of no UUID, which are taken for the domain's", async () => {
    await take(null);
    expect(await take(A)).toMatch(/^guest\//);
    expect(await take(null)).toMatch(/^guest\//);
    expect(await take(B)).toMatch(/^guest@bbbbbbbb\//);
  });

  it("must be told by a UUID, if there are several and the point has none", async () => {
    await take(A);
    await take(B);
    await expect(take(null)).rejects.toMatchObject({ code: "E_WHICH_DOMAIN" });
    expect(await chain.repository.pointIds(NAME)).toHaveLength(1);
  });

  it("stays the old mixture for the domain of the newest point, and is a new one for the other", async () => {
    await takeMixture();
    expect(await domainFolder(chain.repository, { name: NAME, uuid: B })).toBe(NAME);
    expect(await domainFolder(chain.repository, { name: NAME, uuid: A })).toBe("guest@aaaaaaaa");
    await take(A);
    expect(warnings).toEqual([expect.stringContaining("go to guest@aaaaaaaa")]);
    await take(B);
    expect(await domainFolder(chain.repository, { name: NAME, uuid: A })).toBe("guest@aaaaaaaa");
  });

  it("may be called like that of a second domain, and is told apart by the UUID", async () => {
    await take(A, "guest@bbbbbbbb");
    await take(A, NAME);
    expect(await take(B)).toMatch(new RegExp(`^guest@${B}/`));
    expect(await chooseDomain(chain.repository, NAME, { uuid: A })).toBe(NAME);
    expect(await chooseDomain(chain.repository, NAME, { uuid: B })).toBe(`guest@${B}`);
  });

  it("is another one for a domain that was renamed, which is told", async () => {
    await take(A, "old");
    expect(await take(A, "new")).toMatch(/^new\//);
    expect(warnings).toEqual([expect.stringMatching(/^old has points of new too, by its UUID/)]);
    await take(A, "new");
    expect(warnings).toEqual([]);
  });

  it("may be as long as that of the longest name, and a UUID", async () => {
    const name = "n".repeat(200);
    await take(A, name);
    expect(await take(B, name)).toMatch(/@bbbbbbbb\//);
    expect(await take(C, name)).toMatch(/@bbbbbbbb-3333/);
    expect(await take(A, `${name}n`)).toMatch(/^n{150}~[0-9a-f]{16}\//);
    expect(await take(B, `${name}n`)).toMatch(/^n{150}~[0-9a-f]{16}@bbbbbbbb\//);
  });

  it("is not shared by two that get their first points at one moment", async () => {
    let late: Promise<unknown> | undefined;
    const begins = vi.spyOn(chain.repository, "withPendingPoint");
    await chain.take({
      domain: { name: NAME, uuid: A },
      confirm: async () => {
        late = take(B).then(
          () => undefined,
          (error: unknown) => error,
        );
        // It has looked for its folder when it asks for the lock, before the point is there.
        await expect.poll(() => begins.mock.calls.map(([folder]) => folder)).toEqual([NAME, NAME]);
      },
    });
    expect(await late).toMatchObject({ code: "E_OTHER_DOMAIN" });
    expect(await take(B)).toMatch(/^guest@bbbbbbbb\//);
  });
});

describe("a chain", () => {
  it("never leads to a point of another domain", async () => {
    await chain.take({ domain: { name: NAME, uuid: A } });
    const increment = chain.take({ domain: { name: NAME, uuid: B } });
    await expect(increment).rejects.toMatchObject({ code: "E_OTHER_DOMAIN" });
    expect(await folders()).toEqual([NAME]);
  });
});

describe("a chain of version 0.1 that leads to a point of another domain", () => {
  it("is damage, which verify finds", async () => {
    for (const full of [true, false, false]) await chain.take({ full });
    const ids = chain.points.map(({ id }) => id);
    for (const [i, uuid] of [A, null, B].entries()) {
      await chain.rewrite(ids[i] ?? "", { domain: { name: NAME, uuid } });
    }
    const reports = await verifyPoints(chain.repository, NAME, ids);
    expect(reports.flatMap(({ findings }) => findings)).toEqual([
      {
        point: ids[2],
        disk: "vda",
        severity: "damage",
        message: expect.stringContaining(`point ${ids[0]}, which is of another domain`),
      },
    ]);
  });
});

describe("a name that several domains have", () => {
  it("is asked about, unless a UUID or a point's id says which is meant", async () => {
    const first = (await take(A)).split("/")[1] ?? "";
    const second = (await take(B)).split("/")[1] ?? "";
    const { repository } = chain;
    await expect(chooseDomain(repository, NAME)).rejects.toMatchObject({
      code: "E_WHICH_DOMAIN",
      message: expect.stringMatching(new RegExp(`--uuid.*${A}; ${B}`)),
    });
    expect(await chooseDomain(repository, NAME, { uuid: A })).toBe(NAME);
    expect(await chooseDomain(repository, NAME, { uuid: "bbbbbbbb" })).toBe("guest@bbbbbbbb");
    expect(await chooseDomain(repository, NAME, { at: first })).toBe(NAME);
    expect(await chooseDomain(repository, NAME, { at: second })).toBe("guest@bbbbbbbb");
    expect(await chooseDomain(repository, undefined, { uuid: B })).toBe("guest@bbbbbbbb");
    expect(await chooseDomain(repository, "guest@bbbbbbbb")).toBe("guest@bbbbbbbb");
    await expect(chooseDomain(repository, NAME, { uuid: "cccccccc" })).rejects.toMatchObject({
      code: "E_NO_DOMAIN",
    });
  });

  it("need not be given where just one domain of the repository has the point of that id", async () => {
    const first = (await take(A)).split("/")[1] ?? "";
    const second = (await take(B)).split("/")[1] ?? "";
    const { repository } = chain;
    expect(await chooseDomain(repository, undefined, { at: first })).toBe(NAME);
    expect(await chooseDomain(repository, undefined, { at: second })).toBe("guest@bbbbbbbb");
    const which = { code: "E_WHICH_DOMAIN" };
    await expect(chooseDomain(repository, undefined, { at: "2100-01-01" })).rejects.toMatchObject(which);
    const noPoint = { code: "E_NO_POINT" };
    await expect(chooseDomain(repository, undefined, { at: NEVER })).rejects.toMatchObject(noPoint);

    const verified = async (at: string): Promise<unknown> =>
      (await nbdpull("verify", repository.path, "--at", at, "--json")).json();
    expect(await verified(second)).toMatchObject({ points: [{ domain: "guest@bbbbbbbb", id: second }] });
    expect(await verified("latest")).toMatchObject({ points: [{ id: first }, { id: second }] });
    expect(await verified(NEVER)).toMatchObject({ error: noPoint });
    // Two domains may have points of one id.
    const twin = repository.pointFolder(NAME, second);
    await cp(repository.pointFolder("guest@bbbbbbbb", second), twin, { recursive: true });
    await expect(chooseDomain(repository, undefined, { at: second })).rejects.toMatchObject({
      ...which,
      message: expect.stringContaining(`${NAME}, guest@bbbbbbbb`),
    });
  });

  it("is asked about in a mixture of an older version, whose points are told apart by their chains too", async () => {
    const [a1, a2, b1, b2] = await takeMixture();
    const { repository } = chain;
    const latest = async (uuid?: string, at = "latest"): Promise<string> =>
      (await choosePoint(repository, NAME, at, uuid)).id;
    await expect(latest()).rejects.toMatchObject({ code: "E_WHICH_DOMAIN" });
    await expect(latest(undefined, "2100-01-01")).rejects.toMatchObject({ code: "E_WHICH_DOMAIN" });
    expect([await latest(A), await latest(B), await latest(undefined, a1)]).toEqual([a2, b2, a1]);
    await expect(latest(A, b1)).rejects.toMatchObject({ code: "E_NO_POINT" });
    // The newest point of A is in a folder of its own then.
    await take(A);
    expect(await chooseDomain(repository, NAME, { uuid: A })).toBe("guest@aaaaaaaa");
    expect(await chooseDomain(repository, NAME, { uuid: A, at: a1 ?? "" })).toBe(NAME);
    // Even if a clock was ahead before.
    await chain.rewrite(a2 ?? "", { createdAt: "2099-01-01T00:00:00.000Z" });
    expect(await chooseDomain(repository, NAME, { uuid: A })).toBe("guest@aaaaaaaa");
  });

  it("is asked about by every command, each of which takes --uuid", async () => {
    const [a1, a2, b1, b2] = await takeMixture();
    const { path } = chain.repository;
    const target = join(chain.folder, "restored");
    for (const command of [
      ["restore", path, NAME, "--to", target],
      ["serve", path, NAME, "--socket", join(chain.folder, "s"), "--once"],
      ["verify", path, NAME, "--at", "latest"],
    ]) {
      const ran = await nbdpull(...command, "--json");
      expect([command[0], ran.code, ran.json()]).toMatchObject([
        command[0],
        2,
        { error: { code: "E_WHICH_DOMAIN" } },
      ]);
    }
    const restored = await nbdpull("restore", path, NAME, "--to", target, "--uuid", "aaaaaaaa", "--json");
    expect(restored.json()).toMatchObject({ domain: NAME, point: a2 });
    const verified = await nbdpull("verify", path, NAME, "--uuid", A, "--json");
    expect(verified.json()).toMatchObject({ damaged: false, points: [{ id: a1 }, { id: a2 }] });
    const listed = await nbdpull("points", path, "--json");
    expect(listed.json()).toMatchObject([
      { id: a1, uuid: A },
      { id: a2, uuid: A },
      { id: b1, uuid: B },
      { id: b2, uuid: B },
    ]);
    const shown = await nbdpull("points", path, NAME);
    expect(shown.stdout).toMatch(new RegExp(`^${NAME}, UUID ${A} +2 `, "m"));
    expect(shown.stdout).toMatch(new RegExp(`^${NAME}, UUID ${B} +2 `, "m"));
    const one = await nbdpull("points", path, NAME, "--uuid", B, "--json");
    expect(one.json()).toMatchObject([{ id: b1 }, { id: b2 }]);
    expect((await nbdpull("points", path, NAME, "--uuid", "b")).code).toBe(2);
  });
});
