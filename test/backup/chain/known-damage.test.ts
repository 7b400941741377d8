/** What verifies have noted of the points of a chain in a store, whose answers come in any order. */
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { DamageError } from "../../../src/backup/base/errors.js";
import { refuseKnownDamage } from "../../../src/backup/chain/chain.js";
import type { Manifest } from "../../../src/backup/repository/manifest.js";
import type { Repository } from "../../../src/backup/repository/repository.js";

const IDS = Array.from({ length: 12 }, (_, i) => `202601${String(i + 10)}T000000.000Z`);

const recordOf = (message: string): string =>
  JSON.stringify({
    ...{ format: "nbdpull-damage", version: 1, foundAt: "2026-01-01T00:00:00.000Z" },
    places: [{ disk: "vda", message }],
  });

/**
 * Looks at the chain of all points, down from the last one.
 * @param records what is read beside points, by their number, and after how many milliseconds
 */
async function refusal(records: Readonly<Record<number, readonly [string | Error, number]>>) {
  const manifest = (i: number): Manifest =>
    ({ id: IDS[i], disks: [{ name: "vda", parent: IDS[i - 1] ?? null }] }) as Manifest;
  let open = 0;
  const repository = {
    isInStore: true,
    pointIds: async () => IDS,
    hasPoint: async () => true,
    point: async (_: string, id: string) => manifest(IDS.indexOf(id)),
    openPoint: async (_: string, id: string) => {
      open += 1;
      const [found, afterMs] = records[IDS.indexOf(id)] ?? [
        Object.assign(new Error(), { code: "ENOENT" }),
        0,
      ];
      return {
        read: async () => {
          await sleep(afterMs);
          if (found instanceof Error) throw found;
          return Buffer.from(found);
        },
        [Symbol.asyncDispose]: async () => {
          open -= 1;
        },
      };
    },
  } as unknown as Repository;
  const failure = await refuseKnownDamage(repository, "web", manifest(IDS.length - 1), "vda").then(
    () => undefined,
    (error: unknown) => error,
  );
  expect(open).toBe(0);
  return failure;
}

it("names the same of several damaged points each time, whichever is read first", async () => {
  expect(await refusal({})).toBeUndefined();
  for (const [first, other] of [
    [40, 0],
    [0, 40],
  ] as const) {
    const failure = await refusal({ 9: [recordOf("upper"), first], 3: [recordOf("lower"), other] });
    expect(failure).toMatchObject({
      code: "E_DAMAGED",
      message: expect.stringContaining("upper"),
      details: { point: IDS[9], disk: "vda" },
    });
  }
});

it("says of which point and disk the record lies where the medium fails", async () => {
  for (const code of ["EIO", "EUCLEAN"]) {
    const error = Object.assign(new Error(`${code}: it can't be read`), { code });
    const failure = await refusal({ 5: [error, 0] });
    expect(failure).toBeInstanceOf(DamageError);
    expect(failure).toMatchObject({
      code: "E_DAMAGED",
      message: expect.stringContaining(`${code}: it can't be read`),
      details: { point: IDS[5], disk: "vda" },
    });
  }
});
