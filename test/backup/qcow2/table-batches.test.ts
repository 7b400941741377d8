import { open } from "node:fs/promises";
import { expect, it } from "vitest";
import type { Damage } from "../../../src/backup/base/damage.js";
import { ImageFile } from "../../../src/backup/image/image-file.js";
import type { RemoteFile } from "../../../src/backup/image/readable-file.js";
import { Qcow2Reader } from "../../../src/backup/qcow2/reader.js";
import { Qcow2Writer } from "../../../src/backup/qcow2/writer.js";
import { collect, KiB, MiB, scratch } from "../image/support.js";

const CLUSTER = 16 * KiB;
/** Guest bytes that one L2 table describes. */
const TABLE_CLUSTERS = CLUSTER / 8;
const TABLE_SPAN = TABLE_CLUSTERS * CLUSTER;
/** Tables 0 to 39, without a third of them. */
const TABLES = Array.from({ length: 40 }, (_, i) => i).filter((i) => i % 3 !== 1);

async function image(): Promise<string> {
  const path = (await scratch())("disk.qcow2");
  const geometry = { virtualSize: 40 * TABLE_SPAN, clusterSize: CLUSTER };
  const writer = await Qcow2Writer.create(path, { geometry });
  for (const table of TABLES)
    writer.addRun({ kind: "zero", cluster: table * TABLE_CLUSTERS + table, count: 1 });
  await writer.finish({ sync: false });
  await writer.close();
  return path;
}

/** A file that is elsewhere. */
function elsewhere(path: string, failAt?: (position: number, length: number) => Error | undefined) {
  const reads: number[] = [];
  const place: RemoteFile = {
    path,
    open: async () => {
      const file = await ImageFile.open(path);
      return {
        path,
        size: () => file.size(),
        close: () => file.close(),
        read: (target, position) => file.read(target, position),
        fill: async (target, position, end) => {
          reads.push(target.length);
          const failure = failAt?.(position, target.length);
          if (failure) throw failure;
          await file.fill(target, position, end);
        },
      };
    },
  };
  return { place, reads };
}

it("asks for the tables of a file elsewhere together, across gaps of the disk, and shows the same", async () => {
  const path = await image();
  await using plain = await Qcow2Reader.open(path);
  const expected = await collect(plain.runs());
  expect(expected).toHaveLength(TABLES.length);
  const { place, reads } = elsewhere(path);
  await using reader = await Qcow2Reader.open(place, { tableBytes: 16 * CLUSTER });
  reads.length = 0;
  expect(await collect(reader.runs())).toEqual(expected);
  expect(reads).toEqual([16 * CLUSTER, (TABLES.length - 16) * CLUSTER]);
  // One at a time, where nobody has asked for more.
  const alone = elsewhere(path);
  await using slow = await Qcow2Reader.open(alone.place);
  alone.reads.length = 0;
  expect(await collect(slow.runs())).toEqual(expected);
  expect(alone.reads).toEqual(TABLES.map(() => CLUSTER));
});

it("names only the table that can't be read, and gives up where the file can't be reached", async () => {
  const path = await image();
  await using plain = await Qcow2Reader.open(path);
  const expected = await collect(plain.runs());
  let hurt = 0;
  const tables: number[] = [];
  const noted = elsewhere(path, (position, length) => {
    if (length === CLUSTER) tables.push(position);
    return undefined;
  });
  await using first = await Qcow2Reader.open(noted.place);
  tables.length = 0;
  await collect(first.runs());
  hurt = tables[5] ?? 0;
  const unreadable = elsewhere(path, (position, length) =>
    position <= hurt && hurt < position + length
      ? Object.assign(new Error("bad sector"), { code: "EIO" })
      : undefined,
  );
  await using reader = await Qcow2Reader.open(unreadable.place, { tableBytes: MiB });
  const damages: Damage[] = [];
  const found = await collect(reader.runs((damage) => damages.push(damage)));
  expect(damages).toEqual([expect.objectContaining({ guestOffset: (TABLES[5] ?? 0) * TABLE_SPAN })]);
  expect(found).toEqual(expected.filter((_, i) => i !== 5));

  let isAway = false;
  const away = elsewhere(path, () => (isAway ? new Error("away") : undefined));
  await using other = await Qcow2Reader.open(away.place, { tableBytes: MiB });
  away.reads.length = 0;
  isAway = true;
  await expect(collect(other.runs(() => undefined))).rejects.toThrow("away");
  expect(away.reads).toHaveLength(1);
});

it("does not take tables from where an entry that is changed leads", async () => {
  const path = await image();
  await using plain = await Qcow2Reader.open(path);
  const { l1Offset } = plain.header;
  await using file = await open(path, "r+");
  // The fourth table is outside the file.
  const entry = Buffer.alloc(8);
  entry.writeBigUInt64BE((1n << 63n) | BigInt(1024 * MiB));
  await file.write(entry, 0, 8, l1Offset + 8 * (TABLES[3] ?? 0));
  const { place } = elsewhere(path);
  await using reader = await Qcow2Reader.open(place, { tableBytes: MiB });
  const damages: Damage[] = [];
  const found = await collect(reader.runs((damage) => damages.push(damage)));
  expect(damages).toEqual([expect.objectContaining({ guestOffset: (TABLES[3] ?? 0) * TABLE_SPAN })]);
  expect(found).toHaveLength(TABLES.length - 1);
});
