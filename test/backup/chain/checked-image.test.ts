import { describe, expect, it } from "vitest";
import { type Damage, DamageList } from "../../../src/backup/base/damage.js";
import { BackupError, DamageError } from "../../../src/backup/base/errors.js";
import { CheckedImage } from "../../../src/backup/chain/checked-image.js";
import { createDigester, digestClusters } from "../../../src/backup/digest/digest.js";
import type { ClusterRun, Geometry, ImageReader } from "../../../src/backup/image/image.js";

const CLUSTER = 16 * 1024;
const GEOMETRY: Geometry = { virtualSize: 10 * CLUSTER - 512, clusterSize: CLUSTER };
const RUN = { kind: "data", cluster: 0, count: 10, hostOffset: 0 } as const;

/** A disk of ones; the clusters in `bad` can't be read. */
class FailingImage implements ImageReader {
  readonly geometry = GEOMETRY;
  readonly format = "raw";
  readonly #bad: ReadonlySet<number>;
  readonly #failure: Error;
  readonly #content: number;

  constructor(bad: readonly number[], failure: Error, content = 1) {
    this.#bad = new Set(bad);
    this.#failure = failure;
    this.#content = content;
  }

  async *runs(): AsyncGenerator<ClusterRun> {
    yield RUN;
  }

  async readHost(hostOffset: number, target: Uint8Array): Promise<void> {
    const end = Math.ceil((hostOffset + target.length) / CLUSTER);
    for (let cluster = Math.floor(hostOffset / CLUSTER); cluster < end; cluster += 1) {
      if (this.#bad.has(cluster)) throw this.#failure;
    }
    target.fill(this.#content);
  }

  async close(): Promise<void> {}
}

const eio = (): Error => new BackupError("EIO", "reading byte 5 of the image failed: EIO: i/o error, read");

async function found(
  image: FailingImage,
  look: (proven: CheckedImage, digests: Buffer, list: DamageList) => Promise<void>,
): Promise<Damage[]> {
  const digester = await createDigester("xxh64");
  const digests = digestClusters(digester, RUN, Buffer.alloc(10 * CLUSTER, 1), GEOMETRY);
  const list = new DamageList(100);
  await look(new CheckedImage(image, GEOMETRY, digester), digests, list);
  return list.list();
}

const readAll = async (proven: CheckedImage, digests: Buffer, list: DamageList): Promise<void> =>
  await proven.read({ ...RUN, digests }, 0, Buffer.alloc(GEOMETRY.virtualSize), list.note);

describe("clusters that a failing medium can't return", () => {
  it("are reported as damage with place and length, and all others are checked", async () => {
    const message = "the file system cannot read it (EIO)";
    expect(await found(new FailingImage([2, 3, 9], eio()), readAll)).toEqual([
      { message, guestOffset: 2 * CLUSTER, length: 2 * CLUSTER },
      { message, guestOffset: 9 * CLUSTER, length: CLUSTER - 512 },
    ]);
  });

  it("don't hide another cluster that has changed", async () => {
    const changed = async (proven: CheckedImage, digests: Buffer, list: DamageList): Promise<void> => {
      digests.writeUInt8(digests.readUInt8(5 * 8) ^ 1, 5 * 8);
      await readAll(proven, digests, list);
    };
    expect(await found(new FailingImage([4], eio()), changed)).toMatchObject([
      { guestOffset: 4 * CLUSTER, length: CLUSTER },
      { guestOffset: 5 * CLUSTER, length: CLUSTER, message: expect.stringContaining("digest differs") },
    ]);
  });

  it("are damage also where zeroes are expected", async () => {
    const zeroes = (proven: CheckedImage, _: Buffer, list: DamageList): Promise<void> =>
      proven.expectZeroes(CLUSTER, 20 * CLUSTER, list.note);
    expect(await found(new FailingImage([7], eio(), 0), zeroes)).toMatchObject([
      { guestOffset: 7 * CLUSTER, length: CLUSTER, message: expect.stringContaining("EIO") },
    ]);
    expect(await found(new FailingImage([], eio(), 1), zeroes)).toEqual([
      {
        message: "there is data where the point has zeroes",
        guestOffset: CLUSTER,
        length: GEOMETRY.virtualSize - CLUSTER,
      },
    ]);
  });
});

describe("clusters past the end of a truncated image", () => {
  it("are reported as one damage if they are neighbours", async () => {
    const truncated = new DamageError("E_IMAGE_TRUNCATED", "image ends at byte 7", {
      details: { problem: "the image file ends before it" },
    });
    expect(await found(new FailingImage([8, 9], truncated), readAll)).toEqual([
      { message: "the image file ends before it", guestOffset: 8 * CLUSTER, length: 2 * CLUSTER - 512 },
    ]);
  });
});

describe("a failure that says nothing about the image", () => {
  it("is thrown", async () => {
    const failure = new BackupError("EMFILE", "too many open files");
    await expect(found(new FailingImage([1], failure), readAll)).rejects.toBe(failure);
  });
});

describe("a damage list", () => {
  it("ends with a note if entries are left out", () => {
    const list = new DamageList(2);
    for (const guestOffset of [4, 0, 8]) list.note({ message: "m", guestOffset, length: 1 });
    expect(list.list()).toEqual([
      { message: "m", guestOffset: 0, length: 1 },
      { message: "m", guestOffset: 4, length: 1 },
      { message: "and more; the rest is not listed" },
    ]);
  });
});
