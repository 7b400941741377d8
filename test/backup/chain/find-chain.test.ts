import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { DamageError } from "../../../src/backup/base/errors.js";
import { findChainSoon } from "../../../src/backup/chain/chain.js";
import type { Manifest } from "../../../src/backup/repository/manifest.js";
import type { Repository } from "../../../src/backup/repository/repository.js";

const IDS = Array.from({ length: 20 }, (_, i) => `202601${String(i + 10)}T000000.000Z`);

/** A store where each manifest takes as long as an answer does, and those that it was asked for at a time. */
function store(parentOf: (i: number) => number | undefined, bad: readonly number[] = []) {
  const rounds: string[][] = [];
  let isRound = false;
  const manifest = (id: string): Manifest => {
    const parent = parentOf(IDS.indexOf(id));
    return { id, disks: [{ name: "vda", parent: parent === undefined ? null : IDS[parent] }] } as Manifest;
  };
  const repository = {
    isInStore: true,
    pointIds: async () => IDS,
    hasPoint: async (_: string, id: string) => IDS.includes(id),
    point: async (_: string, id: string) => {
      if (!isRound) rounds.push([]);
      isRound = true;
      rounds.at(-1)?.push(id);
      await sleep(10);
      isRound = false;
      if (bad.includes(IDS.indexOf(id))) throw new DamageError("E_MANIFEST", `${id} is damaged`);
      return manifest(id);
    },
  } as unknown as Repository;
  const find = async (top: number): Promise<number[]> => {
    const links = await findChainSoon(repository, "web", manifest(IDS[top] ?? ""), "vda");
    return links.map(({ point }) => IDS.indexOf(point.id));
  };
  return { rounds, find };
}

it("reads the manifests of a long chain a few at a time in a store, and asks for none twice", async () => {
  const { rounds, find } = store((i) => (i === 0 ? undefined : i - 1));
  expect(await find(19)).toEqual(IDS.map((_, i) => 19 - i));
  expect(rounds.map(({ length }) => length)).toEqual([8, 8, 3]);
  expect(new Set(rounds.flat()).size).toBe(19);
});

it("follows the manifests and not the guesses, whatever becomes of those", async () => {
  // Every other point is of another chain, and is damaged.
  const odd = IDS.map((_, i) => i).filter((i) => i % 2 === 1);
  const { rounds, find } = store((i) => (i < 2 ? undefined : i - 2), odd);
  expect(await find(18)).toEqual([18, 16, 14, 12, 10, 8, 6, 4, 2, 0]);
  expect(rounds.length).toBeLessThan(5);
  const alone = store(() => undefined);
  expect([await alone.find(19), alone.rounds]).toEqual([[19], []]);

  const hurt = store((i) => (i === 0 ? undefined : i - 1), [12]);
  const failure = await hurt.find(19).catch((error: unknown) => error);
  expect(failure).toMatchObject({ code: "E_MANIFEST", details: { point: IDS[12], disk: "vda" } });
});
