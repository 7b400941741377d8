import { readFile, truncate, writeFile } from "node:fs/promises";
import fc from "fast-check";
import { expect, it } from "vitest";
import { checkQcow2, type Qcow2Finding } from "../../../src/backup/qcow2/check.js";
import { Qcow2Writer } from "../../../src/backup/qcow2/writer.js";
import { qemuImg, qemuIo } from "../../support/qemu-nbd.js";
import { describeWith } from "../../support/tools.js";
import {
  anyWish,
  finished,
  KiB,
  MiB,
  qemuVerdict,
  scratch,
  store,
  VERDICTS,
  type Verdict,
  type Wish,
} from "../image/support.js";

const CLUSTER = 64 * KiB;
const GEOMETRY = { virtualSize: 16 * CLUSTER, clusterSize: CLUSTER };
/**
 * Host clusters: 0 header, 1-4 data, 5 hole, 6 data, 7 L2 table, 8 L1, 9 refcount table, 10 refcount block.
 */
const WISHES: readonly Wish[] = ["data", "data", "zero", "clean", "data", "data", "unused", "data"];
const L2 = 7 * CLUSTER;
const L1 = 8 * CLUSTER;
const REFCOUNT_TABLE = 9 * CLUSTER;
const REFCOUNTS = 10 * CLUSTER;
const COPIED = 1n << 63n;

async function image(path: string, wishes: readonly Wish[] = WISHES): Promise<void> {
  const writer = await Qcow2Writer.create(path, { geometry: GEOMETRY });
  store(writer, wishes);
  await finished(writer);
}

async function findings(change: (bytes: Buffer) => void): Promise<Qcow2Finding[]> {
  const at = await scratch();
  await image(at("disk"));
  const bytes = await readFile(at("disk"));
  change(bytes);
  await writeFile(at("disk"), bytes);
  const found = await checkQcow2(at("disk"));
  expect(await qemuVerdict(at("disk")), "qemu-img is of another opinion").toBe(verdictOf(found));
  return found;
}

function verdictOf(found: readonly Qcow2Finding[]): Verdict {
  if (found.length === 0) return "sound";
  return found.some(({ severity }) => severity === "damage") ? "damage" : "leak";
}

describeWith(["qemu-img", "qemu-io"], "checkQcow2", () => {
  it("finds nothing wrong with images of the writer", async () => {
    const at = await scratch();
    let run = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(anyWish, { maxLength: 16 }), async (wishes) => {
        const file = at(`disk${run++}`);
        await image(file, wishes);
        expect(await checkQcow2(file)).toEqual([]);
      }),
      { numRuns: 30 },
    );
  });

  it.each([
    ["version 2", "compat=0.10"],
    ["small clusters", "cluster_size=512"],
    ["extended L2 entries", "extended_l2=on"],
    ["refcounts of one bit", "refcount_bits=1"],
    ["refcounts of four bits", "refcount_bits=4"],
    ["refcounts of 8 bits", "refcount_bits=8"],
    ["refcounts of 32 bits", "refcount_bits=32"],
    ["refcounts of 64 bits", "refcount_bits=64"],
    ["preallocated clusters", "preallocation=full"],
  ])("finds nothing wrong with an image created by QEMU with %s", async (_title, options) => {
    const at = await scratch();
    await qemuImg("create", "-q", "-f", "qcow2", "-o", options, at("disk"), "4M");
    await qemuIo(
      at("disk"),
      "qcow2",
      "write -P 1 0 1M",
      "write -z 512k 64k",
      "discard 128k 64k",
      "write 3M 1",
    );
    expect(await checkQcow2(at("disk"))).toEqual([]);
  });

  it("finds nothing wrong with compressed clusters that share a host cluster", async () => {
    const at = await scratch();
    await writeFile(at("plain"), Buffer.alloc(8 * MiB, "compress me "));
    await qemuImg("convert", "-c", "-f", "raw", "-O", "qcow2", at("plain"), at("disk"));
    expect(await checkQcow2(at("disk"))).toEqual([]);
  });

  it("finds an L2 entry that points past the end of the file", async () => {
    expect(await findings((bytes) => bytes.writeBigUInt64BE(COPIED | (1n << 40n), L2 + 5 * 8))).toEqual([
      {
        severity: "damage",
        message: expect.stringContaining("points behind the end") as string,
        guestOffset: 5 * CLUSTER,
        length: CLUSTER,
      },
      { severity: "leak", message: "cluster 4 of the file: the refcount is 1, the references are 0" },
    ]);
  });

  it("finds two guest clusters on one host cluster", async () => {
    expect(await findings((bytes) => bytes.copy(bytes, L2 + 8 * 8, L2, L2 + 8))).toEqual([
      {
        severity: "damage",
        message: expect.stringContaining("is in use for something else") as string,
        guestOffset: 8 * CLUSTER,
        length: CLUSTER,
      },
      { severity: "damage", message: "cluster 1 of the file: the refcount is 1, the references are 2" },
    ]);
  });

  it.each([
    ["an L2 table", L2],
    ["the L1 table", L1],
    ["the refcount table", REFCOUNT_TABLE],
    ["a refcount block", REFCOUNTS],
  ])("finds data stored over %s", async (_title, offset) => {
    const found = await findings((bytes) => bytes.writeBigUInt64BE(COPIED | BigInt(offset), L2 + 8 * 8));
    expect(found).toContainEqual({
      severity: "damage",
      message: expect.stringContaining(`the cluster at byte ${offset} of the file`) as string,
      ...(offset === REFCOUNTS ? {} : { guestOffset: 8 * CLUSTER, length: CLUSTER }),
    });
  });

  it("finds refcounts that are too low", async () => {
    expect(await findings((bytes) => bytes.fill(0, REFCOUNTS + 2, REFCOUNTS + 6))).toEqual([
      { severity: "damage", message: "clusters 1 to 2 of the file: the refcount is 0, the references are 1" },
    ]);
  });

  it("reports unused clusters as leaks", async () => {
    expect(await findings((bytes) => bytes.writeUInt16BE(1, REFCOUNTS + 5 * 2))).toEqual([
      { severity: "leak", message: "cluster 5 of the file: the refcount is 1, the references are 0" },
    ]);
  });

  it.each([
    ["data", 1, "damage"],
    ["an L2 table", 7, "damage"],
    ["the header", 0, "leak"],
    ["the L1 table", 8, "leak"],
    ["a refcount block", 10, "leak"],
  ] as const)("judges a refcount of %s that is too high like QEMU", async (_title, cluster, severity) => {
    expect(await findings((bytes) => bytes.writeUInt16BE(2, REFCOUNTS + cluster * 2))).toEqual([
      { severity, message: `cluster ${cluster} of the file: the refcount is 2, the references are 1` },
    ]);
  });

  it("judges refcounts of compressed clusters like QEMU", async () => {
    const at = await scratch();
    await writeFile(at("plain"), Buffer.alloc(8 * MiB, "compress me "));
    await qemuImg("convert", "-c", "-f", "raw", "-O", "qcow2", at("plain"), at("disk"));
    const sound = await readFile(at("disk"));
    const block = Number(sound.readBigUInt64BE(Number(sound.readBigUInt64BE(48))));
    const streams = Array.from({ length: 16 }, (_, i) => block + 2 * i).find(
      (p) => sound.readUInt16BE(p) > 1,
    );
    for (const by of [-1, 1]) {
      const bytes = Buffer.from(sound);
      bytes.writeUInt16BE(bytes.readUInt16BE(streams ?? 0) + by, streams);
      await writeFile(at("disk"), bytes);
      const verdict = verdictOf(await checkQcow2(at("disk")));
      expect(verdict).toBe(by < 0 ? "damage" : "leak");
      expect(await qemuVerdict(at("disk"))).toBe(verdict);
    }
  });

  it("finds a missing COPIED flag", async () => {
    const found = await findings((bytes) => bytes.writeUInt8(0, L2));
    expect(found).toEqual([
      {
        severity: "damage",
        message: "the L2 entry is not marked as copied",
        guestOffset: 0,
        length: CLUSTER,
      },
    ]);
  });

  it("finds an L1 entry that points into the data or has lost its table", async () => {
    const astray = await findings((bytes) => bytes.writeBigUInt64BE(COPIED | BigInt(CLUSTER), L1));
    expect(astray.some(({ severity }) => severity === "damage")).toBe(true);
    const lost = await findings((bytes) => bytes.writeBigUInt64BE(0n, L1));
    expect(lost.map(({ message }) => message)).toEqual([
      "clusters 1 to 4 of the file: the refcount is 1, the references are 0",
      "clusters 6 to 7 of the file: the refcount is 1, the references are 0",
    ]);
  });

  it.each([
    ["lost", 0n],
    ["on a table", BigInt(L1)],
    ["outside the file", 1n << 50n],
    ["between clusters", BigInt(REFCOUNTS + 512)],
  ])("finds a refcount block that is %s", async (_title, entry) => {
    const found = await findings((bytes) => bytes.writeBigUInt64BE(entry, REFCOUNT_TABLE));
    expect(found.some(({ severity }) => severity === "damage")).toBe(true);
  });

  it("finds that the image was not closed", async () => {
    const at = await scratch();
    await image(at("disk"));
    const bytes = await readFile(at("disk"));
    bytes.writeUInt8(1, 79);
    await writeFile(at("disk"), bytes);
    expect(await checkQcow2(at("disk"))).toMatchObject([{ message: "the image was not closed (dirty bit)" }]);
  });

  it("reports a truncated header or an unsupported feature as one finding", async () => {
    const at = await scratch();
    await image(at("disk"));
    await truncate(at("disk"), 50);
    expect(await checkQcow2(at("disk"))).toMatchObject([{ severity: "damage" }]);
    const [feature] = await findings((bytes) => bytes.writeUInt8(0x80, 72));
    expect(feature?.message).toContain("incompatible feature bit 63");
  });

  it("finds a file truncated in its tables", async () => {
    const at = await scratch();
    for (const length of [L2, L1, REFCOUNT_TABLE, REFCOUNTS]) {
      await image(at(`disk${length}`));
      await truncate(at(`disk${length}`), length);
      const found = await checkQcow2(at(`disk${length}`));
      expect(
        found.some(({ severity }) => severity === "damage"),
        `${length} bytes`,
      ).toBe(true);
    }
  });

  it("reports what no backup has: snapshots and bitmaps", async () => {
    const at = await scratch();
    await image(at("disk"));
    await qemuImg("snapshot", "-c", "then", at("disk"));
    await qemuImg("bitmap", "--add", at("disk"), "changes");
    const found = await checkQcow2(at("disk"));
    expect(found).toContainEqual({
      severity: "damage",
      message: "the image has internal snapshots and stored bitmaps, which no backup has",
    });
  });

  it("lists at most a thousand findings", async () => {
    const found = await findings((bytes) => bytes.fill(0xff, L2, L2 + CLUSTER));
    expect(found.length).toBe(1001);
  });

  it("passes on the error for a missing file", async () => {
    const at = await scratch();
    await expect(checkQcow2(at("nothing"))).rejects.toMatchObject({ code: "ENOENT" });
  });

  it("stops when aborted", async () => {
    const at = await scratch();
    await image(at("disk"));
    await expect(checkQcow2(at("disk"), { signal: AbortSignal.abort() })).rejects.toThrow("aborted");
  });

  it("is never milder than qemu-img, whatever bytes of the tables are changed", async () => {
    const at = await scratch();
    await image(at("sound"));
    const sound = await readFile(at("sound"));
    const place = fc.oneof(
      fc.integer({ min: L2, max: L2 + 100 }),
      fc.integer({ min: L1, max: L1 + 8 }),
      fc.integer({ min: REFCOUNTS, max: REFCOUNTS + 24 }),
    );
    const change = fc.tuple(place, fc.constantFrom(0, 1, 2, 0x10, 0x40, 0x80, 0xff));
    await fc.assert(
      fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 3 }), async (changes) => {
        const bytes = Buffer.from(sound);
        for (const [offset, byte] of changes) bytes[offset] = byte;
        await writeFile(at("disk"), bytes);
        const found = await checkQcow2(at("disk"));
        const theirs = VERDICTS.indexOf(await qemuVerdict(at("disk")));
        expect(VERDICTS.indexOf(verdictOf(found))).toBeGreaterThanOrEqual(theirs);
      }),
      { numRuns: 60 },
    );
  });
});
