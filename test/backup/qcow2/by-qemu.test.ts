/**
 * For any creation option and any writes: the reader misses no data of QEMU's map, and reads the same bytes
 * as QEMU.
 */
import fc from "fast-check";
import { expect, it } from "vitest";
import { maskStretches } from "../../../src/backup/image/image.js";
import { Qcow2Reader } from "../../../src/backup/qcow2/reader.js";
import { qemuImg, qemuIo } from "../../support/qemu-nbd.js";
import { describeWith } from "../../support/tools.js";
import { bytesOf, guestBytes, KiB, MiB, scratch } from "../image/support.js";

const SIZE = 2 * MiB + 512;

interface MapEntry {
  readonly start: number;
  readonly length: number;
  readonly zero: boolean;
}

/** 1 for a sector that may hold data. */
async function sectorsByQemu(path: string): Promise<Uint8Array> {
  const map = JSON.parse(await qemuImg("map", "-f", "qcow2", "--output=json", path)) as MapEntry[];
  const sectors = new Uint8Array(Math.ceil(SIZE / 512));
  for (const { start, length, zero } of map) sectors.fill(zero ? 0 : 1, start / 512, (start + length) / 512);
  return sectors;
}

async function sectorsByUs(reader: Qcow2Reader): Promise<Uint8Array> {
  const { clusterSize } = reader.geometry;
  const sectors = new Uint8Array(Math.ceil(SIZE / 512));
  for await (const run of reader.runs()) {
    if (run.kind === "zero") continue;
    const start = run.cluster * clusterSize;
    const stretches =
      run.kind === "data"
        ? [{ offset: 0, length: run.count * clusterSize }]
        : maskStretches(run.dataMask, clusterSize);
    for (const { offset, length } of stretches) {
      sectors.fill(1, (start + offset) / 512, (start + offset + length) / 512);
    }
  }
  return sectors;
}

const sector = fc.integer({ min: 0, max: 4000 });
const write = fc
  .tuple(fc.constantFrom("write -P 7", "write -z", "write -z -u", "discard"), sector, sector)
  .map(
    ([command, at, count]) => `${command} ${at * 512} ${Math.max(1, count % Math.min(600, 4097 - at)) * 512}`,
  );
/** QEMU compresses only clusters that are not allocated yet. */
const compressed = "write -c -P 9 1M 1M";

describeWith(["qemu-img", "qemu-io"], "Qcow2Reader beside qemu-img", () => {
  it.each([
    "compat=0.10",
    "compat=0.10,cluster_size=512",
    "cluster_size=512",
    "cluster_size=4k",
    "cluster_size=64k",
    "cluster_size=1M",
    "extended_l2=on,cluster_size=16k",
    "extended_l2=on,cluster_size=64k",
    "extended_l2=on,cluster_size=1M",
    "preallocation=metadata",
    "preallocation=falloc,refcount_bits=8",
    "lazy_refcounts=on,refcount_bits=64",
  ])(
    "misses no data of QEMU's map, and reads the same bytes: %s",
    async (options) => {
      const at = await scratch();
      await fc.assert(
        fc.asyncProperty(fc.array(write, { minLength: 1, maxLength: 12 }), async (writes) => {
          const commands = options.includes("preallocation") ? writes : [compressed, ...writes];
          await qemuImg("create", "-q", "-f", "qcow2", "-o", options, at("disk"), String(SIZE));
          await qemuIo(at("disk"), "qcow2", ...commands);
          await using reader = await Qcow2Reader.open(at("disk"));
          // QEMU also reports zeroes where the file itself has a hole.
          const ours = await sectorsByUs(reader);
          const lost = (await sectorsByQemu(at("disk"))).findIndex((data, i) => data > (ours[i] ?? 0));
          expect(lost, "a sector that QEMU calls data").toBe(-1);
          const bytes = await bytesOf(reader, Buffer.alloc(0));
          expect(bytes.length % (64 * KiB)).toBe(512);
          expect(bytes.equals(await guestBytes(at("disk")))).toBe(true);
        }),
        { numRuns: 4 },
      );
    },
    120_000,
  );
});
