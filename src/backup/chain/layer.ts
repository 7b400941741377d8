import { lstat } from "node:fs/promises";
import { join } from "node:path";
import type { OnDamage } from "../base/damage.js";
import { DamageError, hasCode } from "../base/errors.js";
import { createDigester, DIGEST_ALGORITHMS } from "../digest/digest.js";
import { DigestFileReader, type PlacedDigestRun } from "../digest/digest-file-reader.js";
import { sha256OfFile } from "../host/durable-files.js";
import { type ClusterRun, type Geometry, type ImageReader, SUBCLUSTERS } from "../image/image.js";
import type { ReadOptions } from "../image/image-file.js";
import { RawReader } from "../image/raw-reader.js";
import { RunCursor } from "../image/run-cursor.js";
import { Qcow2Reader } from "../qcow2/reader.js";
import type { DiskManifest } from "../repository/manifest.js";
import { CheckedImage, type DigestedRun } from "./checked-image.js";
import type { StoredImage } from "./open-images.js";

/** What a layer tells of itself: where in the digest file the digests are, too, for {@link Layer.digestsAt}. */
export type LayerRun = DigestedRun & { readonly digestsAt?: number | undefined };

/** One disk of one point: an image file, held against the digest file beside it. */
export class Layer implements AsyncDisposable {
  readonly pointId: string;
  readonly disk: DiskManifest;
  readonly geometry: Geometry;
  /** For threads, which open the image for themselves. */
  readonly stored: StoredImage;
  readonly #image: CheckedImage;
  readonly #digestFile: DigestFileReader | undefined;

  private constructor(
    pointId: string,
    disk: DiskManifest,
    stored: StoredImage,
    image: CheckedImage,
    digestFile: DigestFileReader | undefined,
  ) {
    this.pointId = pointId;
    this.disk = disk;
    this.geometry = stored.geometry;
    this.stored = stored;
    this.#image = image;
    this.#digestFile = digestFile;
  }

  /**
   * @param folder the point's folder
   * @param options how its image is read
   * @throws {DamageError} a file is missing, a link, or does not fit the manifest
   */
  static async open(
    folder: string,
    pointId: string,
    disk: DiskManifest,
    options: ReadOptions = {},
  ): Promise<Layer> {
    const geometry = { virtualSize: disk.virtualSize, clusterSize: disk.clusterSize };
    const image = await openImage(folder, pointId, disk, geometry, options).catch((error: unknown) => {
      // We wrote it, so whatever it seems to use that we can't read is a flipped bit.
      if (hasCode(error, "E_QCOW2_UNSUPPORTED")) throw damage(pointId, disk, error.message);
      throw error;
    });
    let digestFile: DigestFileReader | undefined;
    try {
      checkGeometry(image.geometry, geometry, pointId, disk);
      if (disk.digests) {
        digestFile = await DigestFileReader.open(await plainFile(folder, disk.digests.file, pointId, disk));
        const { header } = digestFile;
        const fits =
          header.algorithm === disk.digests.algorithm &&
          header.complete === (disk.mode === "full") &&
          header.geometry.clusterSize === disk.clusterSize &&
          header.geometry.virtualSize === disk.virtualSize;
        if (!fits) throw damage(pointId, disk, "its digest file is another image's");
      }
      const digester = disk.digests ? await createDigester(disk.digests.algorithm) : undefined;
      const path = join(folder, disk.file);
      const stored = { path, format: disk.format, geometry, algorithm: disk.digests?.algorithm };
      return new Layer(pointId, disk, stored, new CheckedImage(image, geometry, digester), digestFile);
    } catch (error) {
      await digestFile?.close();
      await image.close();
      throw error;
    }
  }

  /** Nothing lies below: what no run names reads as zeroes. */
  get complete(): boolean {
    return this.disk.mode === "full";
  }

  /**
   * What this layer defines, in guest order, as far as image and digest file agree; gaps are clean, or zero in a
   * complete layer. Where they disagree `onDamage` is told, and if it returns that stretch is left out.
   */
  async *runs(onDamage: OnDamage): AsyncGenerator<LayerRun> {
    if (!this.#digestFile || !this.disk.digests) {
      for await (const run of this.#image.runs(onDamage)) yield { ...run, digests: undefined };
      return;
    }
    const digests = this.#digestFile.runs(this.disk.digests.sha256);
    if (this.disk.format === "raw") {
      // A raw file cannot tell what it defines; the digest file can. What it calls zero is looked at when it is read.
      for await (const run of digests) yield this.#inRawFile(run);
      return;
    }
    yield* this.#agreed(this.#image.runs(onDamage), digests, onDamage);
  }

  /**
   * Fills `target` from byte `offset` of the guest, which lies in the data of `run`, after the digests of the
   * clusters that it touches were compared.
   */
  async read(run: DigestedRun, offset: number, target: Buffer, onDamage: OnDamage): Promise<void> {
    await this.#image.read(run, offset, target, onDamage);
  }

  /** Bytes of one digest; 0 where there are none. */
  get digestSize(): number {
    return this.disk.digests ? DIGEST_ALGORITHMS[this.disk.digests.algorithm].bytes : 0;
  }

  /**
   * The digests of `count` clusters, which begin at byte `position` of the digest file, as a run has told; undefined
   * where the point has none.
   * @throws {DamageError} the digest file ends before them
   */
  async digestsAt(position: number, count: number): Promise<Buffer | undefined> {
    return await this.#digestFile?.digestsAt(position, count);
  }

  async close(): Promise<void> {
    await this.#digestFile?.close();
    await this.#image.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #inRawFile(run: PlacedDigestRun): LayerRun {
    const hostOffset = run.cluster * this.geometry.clusterSize;
    if (run.kind === "zero") return { ...run, digests: undefined };
    return { ...run, hostOffset };
  }

  /** Walks image and digest file side by side. */
  async *#agreed(
    images: AsyncIterable<ClusterRun>,
    digestRuns: AsyncIterable<PlacedDigestRun>,
    onDamage: OnDamage,
  ): AsyncGenerator<LayerRun> {
    const image = new RunCursor(images);
    const digest = new RunCursor(digestRuns);
    const size = this.digestSize;
    for (;;) {
      const has = await image.current();
      const should = await digest.current();
      if (!has && !should) return;
      const hasAt = has ? image.cluster : Number.POSITIVE_INFINITY;
      const shouldAt = should ? digest.cluster : Number.POSITIVE_INFINITY;
      if (!should || (has && hasAt < shouldAt)) {
        const count = Math.min(image.remaining, shouldAt - hasAt);
        const harmless = this.complete && has?.kind === "zero";
        const message = "the image defines a cluster that the point left out";
        if (!harmless) onDamage({ message, ...this.#place(hasAt, count) });
        image.skip(count);
      } else if (!has || shouldAt < hasAt) {
        const count = Math.min(digest.remaining, hasAt - shouldAt);
        onDamage({
          message: `the image has lost a cluster of ${should.kind}`,
          ...this.#place(shouldAt, count),
        });
        digest.skip(count);
      } else {
        const count = Math.min(image.remaining, digest.remaining);
        const start = digest.cluster - should.cluster;
        if (isSameKind(has, should)) yield this.#joined(has, image.cluster, count, should, start, size);
        else {
          const message = `the image's table says ${has.kind} where the point has ${should.kind}`;
          onDamage({ message, ...this.#place(shouldAt, count) });
        }
        image.skip(count);
        digest.skip(count);
      }
    }
  }

  #place(cluster: number, count: number): { guestOffset: number; length: number } {
    const { clusterSize, virtualSize } = this.geometry;
    const guestOffset = cluster * clusterSize;
    return { guestOffset, length: Math.min(count * clusterSize, virtualSize - guestOffset) };
  }

  #joined(
    has: ClusterRun,
    cluster: number,
    count: number,
    should: PlacedDigestRun,
    start: number,
    digestSize: number,
  ): LayerRun {
    if (has.kind === "partial" || should.kind === "partial") {
      const { digestsAt } = should;
      return { ...has, digests: should.kind === "partial" ? should.digests : undefined, digestsAt };
    }
    if (has.kind === "zero" || should.kind === "zero")
      return { kind: "zero", cluster, count, digests: undefined };
    return {
      kind: "data",
      cluster,
      count,
      hostOffset: has.hostOffset + (cluster - has.cluster) * this.geometry.clusterSize,
      digests: should.digests.subarray(start * digestSize, (start + count) * digestSize),
      digestsAt: should.digestsAt + start * digestSize,
    };
  }
}

function isSameKind(has: ClusterRun, should: PlacedDigestRun): boolean {
  if (has.kind === "partial" && should.kind === "partial") {
    return has.dataMask === should.dataMask && has.zeroMask === should.zeroMask;
  }
  return has.kind === should.kind;
}

async function openImage(
  folder: string,
  pointId: string,
  disk: DiskManifest,
  geometry: Geometry,
  options: ReadOptions,
): Promise<ImageReader> {
  const path = await plainFile(folder, disk.file, pointId, disk);
  switch (disk.format) {
    case "qcow2":
      return await Qcow2Reader.open(path, options);
    case "raw": {
      if (!disk.map) return await RawReader.open(path, { ...options, geometry });
      const mapPath = await plainFile(folder, disk.map.file, pointId, disk);
      if ((await sha256OfFile(mapPath)) !== disk.map.sha256) {
        throw damage(pointId, disk, `the SHA-256 of ${mapPath} is not the one in the manifest`);
      }
      return await RawReader.open(path, { ...options, geometry, mapPath });
    }
    default:
      return disk.format satisfies never;
  }
}

/** A qcow2 image's own size is the disk's, rounded up to a sector. */
function checkGeometry(found: Geometry, expected: Geometry, pointId: string, disk: DiskManifest): void {
  const size = disk.format === "qcow2" ? Math.ceil(expected.virtualSize / 512) * 512 : expected.virtualSize;
  if (found.virtualSize !== size || found.clusterSize !== expected.clusterSize) {
    const what = `${found.virtualSize} bytes in clusters of ${found.clusterSize}, not ${size} in clusters of ${expected.clusterSize}`;
    throw damage(pointId, disk, `the image's header says ${what}`);
  }
  if (expected.clusterSize % SUBCLUSTERS !== 0)
    throw damage(pointId, disk, "its cluster size makes no sense");
}

/** Never follows a link: a point's files lie in its folder. */
async function plainFile(folder: string, name: string, pointId: string, disk: DiskManifest): Promise<string> {
  const path = join(folder, name);
  const found = await lstat(path).catch(() => undefined);
  if (!found) throw damage(pointId, disk, `the file ${path} is missing`);
  if (!found.isFile()) throw damage(pointId, disk, `${path} is not a plain file`);
  return path;
}

/** A damage of a layer as an error, which names the disk and the point. */
export function damage(pointId: string, disk: DiskManifest, what: string, guestOffset?: number): DamageError {
  const where = guestOffset === undefined ? "" : ` at guest offset ${guestOffset}`;
  return new DamageError("E_DAMAGED", `disk ${disk.name} of point ${pointId} is damaged${where}: ${what}`, {
    details: { point: pointId, disk: disk.name, ...(guestOffset === undefined ? {} : { guestOffset }) },
  });
}

/** For work that ends at the first damage: throws it as an error that names disk, point and guest offset. */
export function failOnDamage({ pointId, disk }: Pick<Layer, "pointId" | "disk">): OnDamage {
  return ({ message, guestOffset }) => {
    throw damage(pointId, disk, message, guestOffset);
  };
}
