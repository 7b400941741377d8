import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type PruneResult, prune } from "../../../src/backup/prune/prune.js";
import type { Retention } from "../../../src/backup/prune/retention.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { nbdpull } from "../../support/nbdpull.js";

const CLUSTER = 64 * 1024;
const NAME = MemoryChain.domain;
const A = "aaaaaaaa-1111-4111-8111-111111111111";
const B = "bbbbbbbb-2222-4222-8222-222222222222";

let chain: MemoryChain;
/**
 * Points of two domains in one folder, as version 0.1 made them: three of A, the second of no UUID, and two
 * of B.
 */
let ids: readonly string[];
beforeEach(async () => {
  chain = await MemoryChain.start(8 * CLUSTER);
  for (const [i, full] of [true, false, false, true, false].entries()) {
    chain.disk.write(i * CLUSTER, Buffer.alloc(CLUSTER, i + 1));
    await chain.take({ full });
  }
  ids = chain.points.map(({ id }) => id);
  for (const [i, uuid] of [A, null, A, B, B].entries()) {
    await chain.rewrite(ids[i] ?? "", { domain: { name: NAME, uuid } });
  }
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

function run(retention: Retention, uuid?: string, dryRun = false): Promise<PruneResult> {
  return prune({ repository: chain.repository, domain: NAME, uuid, retention, dryRun, sync: false });
}

/** Whether the points stay, as one letter each. */
function actions({ points }: PruneResult): string {
  return points.map(({ action }) => action[0]).join("");
}

async function expectRestorable(id: string | undefined): Promise<void> {
  const target = join(chain.folder, `restored-${id}`);
  const ran = await nbdpull("restore", chain.repository.path, NAME, "--at", id ?? "", "--to", target);
  expect([ran.code, ran.stderr]).toEqual([0, ""]);
  const content = Buffer.from((await chain.contents.get(id ?? "")?.read(0, chain.disk.size)) ?? []);
  expect((await readFile(join(target, "vda.raw"))).equals(content)).toBe(true);
}

describe("a prune of points of two domains in one folder", () => {
  it("counts for each domain its own points only, and both stay restorable", async () => {
    expect(actions(await run({ last: 2 }, undefined, true))).toBe("dkkkk");
    expect(actions(await run({ last: 1 }))).toBe("ddkdk");
    expect(await chain.repository.pointIds(NAME)).toEqual([ids[2], ids[4]]);
    await expectRestorable(ids[2]);
    await expectRestorable(ids[4]);
    expect((await nbdpull("verify", chain.repository.path)).code).toBe(0);
  });

  it("drops points of one of them only, if its UUID is given", async () => {
    const ofB = await run({ last: 1 }, "bbbbbbbb", true);
    expect(actions(ofB)).toBe("kkkdk");
    expect(ofB.points.map(({ uuid }) => uuid)).toEqual([A, A, A, B, B]);
    expect(ofB.points[0]?.reasons).toEqual(["another domain"]);
    const { path } = chain.repository;
    const ran = await nbdpull("prune", path, NAME, "--uuid", A, "--keep-last", "1");
    expect(ran.stdout).toMatch(new RegExp(`${ids[0]}  ${A}  drop`));
    expect(await chain.repository.pointIds(NAME)).toEqual(ids.slice(2));
    for (const id of ids.slice(2)) await expectRestorable(id);
  });

  it("keeps the base of each domain's next increment", async () => {
    await chain.rewrite(ids[0] ?? "", { checkpoint: { name: "a", creationTime: 1 } });
    await chain.rewrite(ids[3] ?? "", { checkpoint: { name: "b", creationTime: 2 } });
    expect(actions(await run({ last: 1 }, undefined, true))).toBe("kdkkk");
  });
});
