import { expect, it } from "vitest";
import { BootReads } from "../../../src/backup/live/boot-reads.js";
import { MOST_BOOT_BYTES, MOST_BOOT_STRETCHES } from "../../../src/backup/repository/boot-record.js";
import type { Repository } from "../../../src/backup/repository/repository.js";

const UNIT = 64 * 1024;

/** What is recorded in an object store, of which a test needs no more. */
async function recorded(reads: BootReads): Promise<{ disk: string; reads: string[] }[]> {
  let text = '{"disks":[]}';
  const folder = {
    names: async () => [],
    replace: async (_: string, content: string) => {
      text = content;
    },
    sync: async () => undefined,
    [Symbol.asyncDispose]: async () => undefined,
  };
  const repository = { isInStore: true, holdRecords: async () => folder } as unknown as Repository;
  await reads.record({ repository, domain: "web", point: "1", isWhole: true });
  return (JSON.parse(text) as { disks: { disk: string; reads: string[] }[] }).disks;
}

it("notes each place once, in the order of the first reads, neighbours together", async () => {
  const boot = new BootReads();
  boot.note("vda", 512, 512);
  boot.note("vda", 10 * UNIT - 1, 2);
  boot.note("vdb", 0, 3 * UNIT);
  boot.note("vda", 11 * UNIT, UNIT);
  boot.note("vda", 0, 4096);
  boot.note("vda", 9 * UNIT, UNIT);
  expect(await recorded(boot)).toEqual([
    { disk: "vda", reads: [`0+${UNIT}`, `${9 * UNIT}+${3 * UNIT}`] },
    { disk: "vdb", reads: [`0+${3 * UNIT}`] },
  ]);
  boot.note("vda", 20 * UNIT, UNIT);
  expect(await recorded(boot)).toHaveLength(2);
  expect((await recorded(boot))[0]?.reads).toHaveLength(2);
});

it("notes no more than a record may have", async () => {
  const long = new BootReads();
  long.note("vda", 0, 2 * MOST_BOOT_BYTES);
  expect(await recorded(long)).toEqual([{ disk: "vda", reads: [`0+${MOST_BOOT_BYTES}`] }]);
  const many = new BootReads();
  for (let at = 0; at < 2 * MOST_BOOT_STRETCHES; at += 2) many.note("vda", at * UNIT, 1);
  const [disk] = await recorded(many);
  expect(disk?.reads.length).toBe(Math.min(MOST_BOOT_STRETCHES, MOST_BOOT_BYTES / UNIT));
  expect(await recorded(new BootReads())).toEqual([]);
});
