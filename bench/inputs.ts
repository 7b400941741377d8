/** The disks that workloads read. Made on first use, shared by the workloads of one run, gone after it. */

import { mkdir, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { evenly, scattered } from "./extents.js";
import { type Content, type Image, makeRaw, qemuImg, qemuIo, type Stretch, storedBytes } from "./images.js";
import { scaled } from "./scale.js";

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;
const TiB = 1024 * GiB;
/** qcow2's default cluster. */
const CLUSTER = 64 * KiB;

/** The name of every dirty bitmap here. */
export const BITMAP = "since";

export interface Disk {
  readonly image: Image;
  /** Bytes. */
  readonly virtualSize: number;
}

export interface DirtyDisk extends Disk {
  /** A sparse raw image with the content of the dirty extents, and nothing else. */
  readonly dirty: Image;
}

/** So much may lie about before inputs that the workload at hand doesn't use are removed. */
const BUDGET_BYTES = 7 * GiB;

export class Inputs {
  readonly #folder: string;
  readonly #scale: number;
  /** By name, the least recently used first. */
  readonly #made = new Map<string, { readonly disk: Promise<Disk>; usedBy: string }>();
  #workload = "";

  constructor(folder: string, scale: number) {
    this.#folder = folder;
    this.#scale = scale;
  }

  /** Inputs that are used from now on stay until the next workload begins. */
  async beginWorkload(name: string): Promise<void> {
    this.#workload = name;
    for (const [input, { usedBy }] of this.#made) {
      if ((await this.#storedBytes()) <= BUDGET_BYTES) return;
      if (usedBy === name) continue;
      this.#made.delete(input);
      await rm(join(this.#folder, input), { recursive: true });
    }
  }

  /** Half of the disk is data, in extents of 64 MiB: 2 GiB of 4. */
  largeExtents(options: { format: "raw" | "qcow2"; content?: Content; bytes?: number }): Promise<Disk> {
    const { format, content = "random", bytes = 2 * GiB } = options;
    return this.make(`large-${format}-${content}-${bytes / MiB}`, async (folder) => {
      const { virtualSize, stretches } = this.#halfFull(bytes);
      const raw = await makeRaw(join(folder, "disk.raw"), virtualSize, stretches, { content });
      return { virtualSize, image: format === "raw" ? raw : await convert(raw, folder) };
    });
  }

  /** As the text of {@link largeExtents}, stored in compressed clusters. */
  compressed(bytes: number): Promise<Disk> {
    return this.make(`compressed-${bytes / MiB}`, async (folder) => {
      const { virtualSize, stretches } = this.#halfFull(bytes);
      const raw = await makeRaw(join(folder, "disk.raw"), virtualSize, stretches, { content: "text" });
      return { virtualSize, image: await convert(raw, folder, "-c", "-m", "2", "-W") };
    });
  }

  /** A quarter of the disk is data; a tenth has changed since, in extents of 16 MiB. */
  tenthDirty(): Promise<DirtyDisk> {
    return this.make("tenth-dirty", (folder) => {
      const virtualSize = scaled(4 * GiB, this.#scale, 32 * MiB);
      const count = Math.max(Math.round(virtualSize / 10 / (16 * MiB)), 1);
      return makeDirty(folder, virtualSize, evenly(virtualSize, count, 16 * MiB), 64 * KiB);
    });
  }

  /** 6,000 changes of 64 KiB, all over the disk. */
  scattered(): Promise<DirtyDisk> {
    return this.make("scattered", (folder) => {
      const virtualSize = scaled(4 * GiB, this.#scale, 32 * MiB);
      const count = scaled(6000, this.#scale, 1);
      return makeDirty(folder, virtualSize, scattered(virtualSize, count, CLUSTER), 64 * KiB);
    });
  }

  /** 20,000 changes of 4 KiB, in a bitmap that tells them apart. */
  fineGrained(): Promise<DirtyDisk> {
    return this.make("fine-grained", (folder) => {
      const virtualSize = scaled(4 * GiB, this.#scale, 32 * MiB);
      const count = scaled(20_000, this.#scale, 1);
      return makeDirty(folder, virtualSize, scattered(virtualSize, count, 4 * KiB), 4 * KiB);
    });
  }

  /** A disk without a byte of data. */
  zero(): Promise<Disk> {
    return this.make("zero", async (folder) => {
      const virtualSize = scaled(20 * GiB, this.#scale, 32 * MiB);
      return { virtualSize, image: await createQcow2(join(folder, "disk.qcow2"), virtualSize) };
    });
  }

  /** 1 TiB, with 200,000 extents of 64 KiB in its bitmap. They have been zeroed, so the image stays small. */
  huge(): Promise<DirtyDisk> {
    return this.make("huge", async (folder) => {
      const virtualSize = scaled(TiB, this.#scale, GiB);
      const extents = evenly(virtualSize, scaled(200_000, this.#scale, 1), CLUSTER);
      const image = await createQcow2(join(folder, "disk.qcow2"), virtualSize);
      await addBitmap(image, CLUSTER);
      await qemuIo(
        image,
        extents.map(({ offset, length }) => `write -qz ${offset} ${length}`),
      );
      return { virtualSize, image, dirty: await makeRaw(join(folder, "dirty.raw"), virtualSize, []) };
    });
  }

  #halfFull(bytes: number): { virtualSize: number; stretches: Stretch[] } {
    const extent = bytes * this.#scale >= GiB / 4 ? 64 * MiB : 4 * MiB;
    const data = scaled(bytes, this.#scale, extent);
    return { virtualSize: 2 * data, stretches: evenly(2 * data, data / extent, extent) };
  }

  /** Whatever else workloads share, by its name, in a folder of its own. */
  make<T extends Disk>(name: string, make: (folder: string) => Promise<T>): Promise<T> {
    const known = this.#made.get(name);
    if (known !== undefined) {
      this.#made.delete(name);
      this.#made.set(name, { ...known, usedBy: this.#workload });
      // The name says what kind of disk it is.
      return known.disk as Promise<T>;
    }
    const folder = join(this.#folder, name);
    const disk = mkdir(folder, { recursive: true }).then(() => make(folder));
    disk.catch(() => this.#made.delete(name));
    this.#made.set(name, { disk, usedBy: this.#workload });
    return disk;
  }

  async #storedBytes(): Promise<number> {
    const files = await readdir(this.#folder, { recursive: true, withFileTypes: true }).catch(() => []);
    const sizes = files
      .filter((file) => file.isFile())
      .map((file) => storedBytes(join(file.parentPath, file.name)));
    return (await Promise.all(sizes)).reduce((sum, size) => sum + size, 0);
  }
}

/** The raw image as qcow2, in its place. */
export async function convert(raw: Image, folder: string, ...args: readonly string[]): Promise<Image> {
  const image: Image = { path: join(folder, "disk.qcow2"), format: "qcow2" };
  await qemuImg("convert", "-f", "raw", "-O", "qcow2", ...args, raw.path, image.path);
  await rm(raw.path);
  return image;
}

async function createQcow2(path: string, virtualSize: number): Promise<Image> {
  await qemuImg("create", "-q", "-f", "qcow2", path, String(virtualSize));
  return { path, format: "qcow2" };
}

export async function addBitmap(image: Image, granularity: number): Promise<void> {
  await qemuImg("bitmap", "--add", "-g", String(granularity), image.path, BITMAP);
}

/**
 * A disk of which a quarter is data, with a bitmap that marks exactly `extents`. QEMU marks them while
 * qemu-img copies their new content onto the disk. --target-is-zero prevents writes between them.
 */
async function makeDirty(
  folder: string,
  virtualSize: number,
  extents: readonly Stretch[],
  granularity: number,
): Promise<DirtyDisk> {
  const before = evenly(virtualSize, virtualSize / (32 * MiB), 8 * MiB);
  const image = await convert(await makeRaw(join(folder, "disk.raw"), virtualSize, before), folder);
  await addBitmap(image, granularity);
  const dirty = await makeRaw(join(folder, "dirty.raw"), virtualSize, extents, { generation: 2 });
  await writeOnto(image, dirty);
  return { image, virtualSize, dirty };
}

/** Copies what a sparse raw image holds onto a disk, through QEMU, which marks it in the disk's bitmap. */
export async function writeOnto(disk: Image, changes: Image): Promise<void> {
  const onto = ["-n", "--target-is-zero", "-t", "unsafe", "-f", changes.format, "-O", disk.format];
  await qemuImg("convert", ...onto, changes.path, disk.path);
}
