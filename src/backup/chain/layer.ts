import type { OnDamage } from "../base/damage.js";
import { DamageError, hasCode } from "../base/errors.js";
import { closeAll } from "../base/in-parallel.js";
import { DIGEST_ALGORITHMS } from "../digest/algorithms.js";
import { createDigester } from "../digest/digest.js";
import type { DigestHeader } from "../digest/digest-file.js";
import { DigestFileReader, type PlacedDigestRun } from "../digest/digest-file-reader.js";
import {
  type ClusterRun,
  type Geometry,
  type ImageReader,
  type PartialRun,
  SUBCLUSTERS,
} from "../image/image.js";
import { RawReader } from "../image/raw-reader.js";
import { type FilePlace, sha256Of } from "../image/readable-file.js";
import { Qcow2Reader, type Qcow2ReadOptions } from "../qcow2/reader.js";
import type { DiskManifest } from "../repository/manifest.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import { agreedRuns, type LayerRun } from "./agreed-runs.js";
import { type AwaitedRun, CheckedImage, type DigestedRun } from "./checked-image.js";
import { type StoredImage, storedAt } from "./open-images.js";

/** How a layer is read. */
export type LayerOptions = Qcow2ReadOptions;

/** One disk of one point: an image file, which is compared with the digest file beside it. */
export class Layer implements AsyncDisposable {
  readonly pointId: string;
  readonly disk: DiskManifest;
  readonly geometry: Geometry;
  /** For threads, each of which opens the image itself. */
  readonly stored: StoredImage;
  readonly #folder: StoredFolder;
  readonly #image: CheckedImage;
  readonly #digestFile: DigestFileReader | undefined;

  private constructor(
    folder: StoredFolder,
    pointId: string,
    disk: DiskManifest,
    stored: StoredImage,
    image: CheckedImage,
    digestFile: DigestFileReader | undefined,
  ) {
    this.#folder = folder;
    this.pointId = pointId;
    this.disk = disk;
    this.geometry = stored.geometry;
    this.stored = stored;
    this.#image = image;
    this.#digestFile = digestFile;
  }

  /**
   * Opens the image and its digest file, and compares their headers with the manifest.
   * @param folder the point's folder; belongs to the layer from here on, even if this fails
   * @param options how its image is read
   * @throws {DamageError} a file is missing, is not a plain file, or doesn't match the manifest
   * @throws the file system's error; the signal's reason
   */
  static async open(
    folder: StoredFolder,
    pointId: string,
    disk: DiskManifest,
    options: LayerOptions = {},
  ): Promise<Layer> {
    try {
      return await Layer.#open(folder, pointId, disk, options);
    } catch (error) {
      await folder.close().catch(() => undefined);
      throw error;
    }
  }

  static async #open(
    folder: StoredFolder,
    pointId: string,
    disk: DiskManifest,
    options: LayerOptions,
  ): Promise<Layer> {
    const geometry = { virtualSize: disk.virtualSize, clusterSize: disk.clusterSize };
    const image = await openImage(folder, pointId, disk, geometry, options).catch((error: unknown) => {
      // We wrote this image, so a feature that we can't read must be a flipped bit.
      if (hasCode(error, "E_QCOW2_UNSUPPORTED")) throw damage(pointId, disk, error.message);
      throw error;
    });
    let digestFile: DigestFileReader | undefined;
    try {
      checkGeometry(image.geometry, geometry, pointId, disk);
      if (disk.digests) {
        digestFile = await DigestFileReader.open(
          await plainFile(folder, disk.digests.file, pointId, disk),
          options,
        );
        checkDigestHeader(digestFile.header, pointId, disk);
      }
      const digester = disk.digests ? await createDigester(disk.digests.algorithm) : undefined;
      const stored = {
        ...storedAt(folder.at(disk.file)),
        ...{ format: disk.format, geometry, algorithm: disk.digests?.algorithm },
      };
      return new Layer(
        folder,
        pointId,
        disk,
        stored,
        new CheckedImage(image, geometry, digester),
        digestFile,
      );
    } catch (error) {
      await closeAll(digestFile, image).catch(() => undefined);
      throw error;
    }
  }

  /** True for a full copy, which has no layer below: a cluster without a run reads as zeroes. */
  get complete(): boolean {
    return this.disk.mode === "full";
  }

  /**
   * The runs that this layer defines, in guest order. Gaps are clean, or zero in a complete layer. The
   * SHA-256 of the digest file is compared at the end.
   * @param onDamage called for each stretch where image and digest file disagree, and for each invalid entry
   *   of the image's tables. If it returns, the stretch is left out.
   * @throws {DamageError} the digest file or the map of a raw increment is damaged
   */
  async *runs(onDamage: OnDamage): AsyncGenerator<LayerRun> {
    for await (const block of this.runBlocks(onDamage)) yield* block;
  }

  /** Like {@link runs}, many together. Those before a stretch come before `onDamage` is called for it. */
  async *runBlocks(onDamage: OnDamage): AsyncGenerator<readonly LayerRun[]> {
    const images = this.#image.runBlocks(onDamage);
    if (!this.#digestFile || !this.disk.digests) {
      for await (const block of images) yield block.map((run) => ({ ...run, digests: undefined }));
      return;
    }
    const digests = this.#digestFile.runBlocks(this.disk.digests.sha256);
    if (this.disk.format === "raw") {
      // Only the digest file says what a raw image defines. Its zero runs are not compared here:
      // `CheckedImage.expectZeroes` does that.
      for await (const block of digests) yield block.map((run) => this.#inRawFile(run));
      return;
    }
    const { geometry, complete, digestSize } = this;
    yield* agreedRuns(images, digests, { geometry, complete, digestSize }, onDamage);
  }

  /**
   * The runs that the image alone tells of, by its tables or its map. Neither digests nor data are read, so
   * nothing is proven.
   * @param onDamage as for {@link runs}
   * @throws {DamageError} the map of a raw increment is damaged
   */
  imageRuns(onDamage: OnDamage): AsyncIterable<ClusterRun> {
    return this.#image.runs(onDamage);
  }

  /**
   * Checks what can be checked without reading data or digests: each entry of the image's tables is valid and
   * leads into the file, and the digest file has its end.
   * @throws {DamageError} the first damage
   */
  async checkTables(): Promise<void> {
    for await (const _ of this.imageRuns(failOnDamage(this)));
    await this.#digestFile?.assertComplete();
  }

  /** As {@link CheckedImage.read}. */
  async read(run: AwaitedRun, offset: number, target: Buffer, onDamage: OnDamage): Promise<void> {
    await this.#image.read(run, offset, target, onDamage);
  }

  /** As {@link CheckedImage.expectZeroes}. */
  async expectZeroes(offset: number, length: number, onDamage: OnDamage): Promise<void> {
    await this.#image.expectZeroes(offset, length, onDamage);
  }

  /** As {@link CheckedImage.expectZeroSubclusters}. */
  async expectZeroSubclusters(run: PartialRun, onDamage: OnDamage): Promise<void> {
    await this.#image.expectZeroSubclusters(run, onDamage);
  }

  /** As {@link CheckedImage.prove}. */
  prove(run: DigestedRun, cluster: number, bytes: Buffer, onDamage: OnDamage): void {
    this.#image.prove(run, cluster, bytes, onDamage);
  }

  /** As {@link CheckedImage.streamOf}. */
  async streamOf(cluster: number): Promise<{ readonly hostOffset: number; readonly length: number }> {
    return await this.#image.streamOf(cluster);
  }

  /** As {@link CheckedImage.decompress}. */
  async decompress(cluster: number, stream: Uint8Array): Promise<Buffer> {
    return await this.#image.decompress(cluster, stream);
  }

  /** Whether the data of a run is compressed, so that it has no place of its own in the file. */
  isCompressed(run: { readonly hostOffset: number }): boolean {
    return this.#image.isCompressed(run);
  }

  /** Length of one digest in bytes; 0 if the disk has no digests. */
  get digestSize(): number {
    return this.disk.digests ? DIGEST_ALGORITHMS[this.disk.digests.algorithm].bytes : 0;
  }

  /**
   * The digests of `count` clusters, or undefined if the disk has none.
   * @param position where they begin in the digest file, in bytes, calculated from the `digestsAt` of a run
   * @throws {DamageError} the digest file ends too early
   */
  async digestsAt(position: number, count: number): Promise<Buffer | undefined> {
    return await this.#digestFile?.digestsAt(position, count);
  }

  /** Closes everything, also if one of the files can't be closed. @throws the first failure */
  async close(): Promise<void> {
    await closeAll(this.#digestFile, this.#image, this.#folder);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #inRawFile(run: PlacedDigestRun): LayerRun {
    const hostOffset = run.cluster * this.geometry.clusterSize;
    if (run.kind === "zero") return { ...run, digests: undefined };
    return { ...run, hostOffset };
  }
}

async function openImage(
  folder: StoredFolder,
  pointId: string,
  disk: DiskManifest,
  geometry: Geometry,
  options: LayerOptions,
): Promise<ImageReader> {
  const place = await plainFile(folder, disk.file, pointId, disk);
  switch (disk.format) {
    case "qcow2":
      return await Qcow2Reader.open(place, options);
    case "raw": {
      if (!disk.map) return await RawReader.open(place, { ...options, geometry });
      const mapPath = await plainFile(folder, disk.map.file, pointId, disk);
      if ((await sha256Of(mapPath, options.signal)) !== disk.map.sha256) {
        throw damage(
          pointId,
          disk,
          `the SHA-256 of ${folder.path}/${disk.map.file} differs from the one in the manifest`,
        );
      }
      return await RawReader.open(place, { ...options, geometry, mapPath });
    }
    default:
      return disk.format satisfies never;
  }
}

/** Compares the header of a digest file with the manifest. @throws {DamageError} it is another image's */
export function checkDigestHeader(header: DigestHeader, pointId: string, disk: DiskManifest): void {
  const fits =
    header.algorithm === disk.digests?.algorithm &&
    header.complete === (disk.mode === "full") &&
    header.geometry.clusterSize === disk.clusterSize &&
    header.geometry.virtualSize === disk.virtualSize;
  if (!fits) throw damage(pointId, disk, "its digest file belongs to another image");
}

/** Compares an image's header with the manifest. The size in a qcow2 header is rounded up to a sector. */
function checkGeometry(found: Geometry, expected: Geometry, pointId: string, disk: DiskManifest): void {
  const size = disk.format === "qcow2" ? Math.ceil(expected.virtualSize / 512) * 512 : expected.virtualSize;
  if (found.virtualSize !== size || found.clusterSize !== expected.clusterSize) {
    const what = `${found.virtualSize} bytes in clusters of ${found.clusterSize}, not ${size} in clusters of ${expected.clusterSize}`;
    throw damage(pointId, disk, `the image's header says ${what}`);
  }
  if (expected.clusterSize % SUBCLUSTERS !== 0) throw damage(pointId, disk, "its cluster size is invalid");
}

/** Where a point's file is. Symbolic links are refused, because a point's files are in its own folder. */
export async function plainFile(
  folder: StoredFolder,
  name: string,
  pointId: string,
  disk: DiskManifest,
): Promise<FilePlace> {
  const found = await folder.find(name);
  if (!found) throw damage(pointId, disk, `the file ${folder.path}/${name} is missing`);
  if (!found.isFile()) throw damage(pointId, disk, `${folder.path}/${name} is not a plain file`);
  return folder.at(name);
}

/** The error `E_DAMAGED` for a layer; it names the disk and the point. `what` ends the message. */
export function damage(pointId: string, disk: DiskManifest, what: string, guestOffset?: number): DamageError {
  const where = guestOffset === undefined ? "" : ` at guest offset ${guestOffset}`;
  return new DamageError("E_DAMAGED", `disk ${disk.name} of point ${pointId} is damaged${where}: ${what}`, {
    details: { point: pointId, disk: disk.name, ...(guestOffset === undefined ? {} : { guestOffset }) },
  });
}

/**
 * An `onDamage` for work that ends at the first damage: it throws a {@link DamageError} that names disk,
 * point and guest offset.
 */
export function failOnDamage({ pointId, disk }: Pick<Layer, "pointId" | "disk">): OnDamage {
  return ({ message, guestOffset }) => {
    throw damage(pointId, disk, message, guestOffset);
  };
}
