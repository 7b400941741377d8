import { DamageError } from "../base/errors.js";
import type { DigestedRun } from "../chain/checked-image.js";
import { CheckedImage } from "../chain/checked-image.js";
import { createDigester, digestClusters } from "../digest/digest.js";
import { DigestFileReader } from "../digest/digest-file-reader.js";
import { DigestFileWriter } from "../digest/digest-file-writer.js";
import { type ClusterRun, type ImageReader, slotsOf } from "../image/image.js";
import type { NewPlace } from "../image/new-file.js";
import { RawReader } from "../image/raw-reader.js";
import { sha256Of } from "../image/readable-file.js";
import { Qcow2Reader } from "../qcow2/reader.js";
import type { DiskManifest } from "../repository/manifest.js";
import type { StoredFolder } from "../storage/stored-folder.js";

/** Most clusters whose digests are made at a time. */
const MOST_CLUSTERS = 64;

/** Puts a digest file in the place of one that is lost or damaged. */
export interface DigestsPlace {
  /**
   * @param write makes the new file, and tells its SHA-256
   * @param sha256 that it must have; otherwise all stays as it was
   * @returns whether it is in place
   */
  put(write: (place: NewPlace) => Promise<string>, sha256: string): Promise<boolean>;
}

interface RemakeOptions {
  /** Undefined: only find out whether it can be made again. */
  readonly place: DigestsPlace | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Whether the digest file of a disk is as the manifest says, by its SHA-256.
 * @param folder of the point
 */
export async function isDigestFileRight(
  folder: StoredFolder,
  { digests }: DiskManifest,
  signal?: AbortSignal,
): Promise<boolean> {
  if (!digests) return true;
  const found = await folder.find(digests.file);
  if (!found?.isFile()) return false;
  return (await sha256Of(folder.at(digests.file), signal)) === digests.sha256;
}

/**
 * Makes a lost or damaged digest file again out of its image. It gets its name only if its SHA-256 is the one
 * in the manifest: then image and file both are what they were. If the image is damaged too, nothing is
 * changed.
 * @param folder of the point
 * @returns whether the file could be made
 * @throws {DamageError} `E_MANIFEST`: the manifest would have to be changed, and can't be
 * @throws the file system's or the store's error
 */
export async function remakeDigests(
  folder: StoredFolder,
  disk: DiskManifest,
  { place, signal }: RemakeOptions,
): Promise<boolean> {
  const { digests } = disk;
  if (!digests) return false;
  // The records of runs of zeroes lie as the backup had them. Where they were not joined, only the old file
  // tells.
  for (const shape of [shapeOfImage, shapeOfOldFile]) {
    const writeTo = (file: NewPlace | undefined): Promise<string> => write(folder, disk, file, shape, signal);
    try {
      const isMade = place
        ? await place.put(writeTo, digests.sha256)
        : (await writeTo(undefined)) === digests.sha256;
      if (isMade) return true;
    } catch (error) {
      // That the point's manifest can't be changed is true of each way.
      if (!(error instanceof DamageError) || error.code === "E_MANIFEST") throw error;
    }
  }
  return false;
}

/** The runs of an image, as the records of its digest file divide them. */
type Shape = (folder: StoredFolder, disk: DiskManifest, image: ImageReader) => AsyncIterable<ClusterRun>;

const shapeOfImage: Shape = (_folder, _disk, image) => image.runs();

/** The heads of the records are a small part of the file, and mostly they are not what is damaged. */
async function* shapeOfOldFile(
  folder: StoredFolder,
  { digests }: DiskManifest,
  image: ImageReader,
): AsyncGenerator<ClusterRun> {
  const found = digests && (await folder.find(digests.file));
  if (!digests || !found?.isFile()) throw new DamageError("E_DIGEST_FILE", "there is no old file");
  const old = await DigestFileReader.open(folder.at(digests.file));
  try {
    const places = image.runs()[Symbol.asyncIterator]();
    let place: ClusterRun | undefined;
    for await (const { digestsAt: _, ...head } of old.heads()) {
      if (head.kind === "zero") {
        yield head;
        continue;
      }
      for (let done = 0; done < head.count; ) {
        const cluster = head.cluster + done;
        while (!place || place.cluster + place.count <= cluster) {
          const next: IteratorResult<ClusterRun> = await places.next();
          if (next.done) throw new DamageError("E_DIGEST_FILE", "the image lacks a cluster");
          place = next.value;
        }
        if (place.kind !== head.kind || place.cluster > cluster) {
          throw new DamageError("E_DIGEST_FILE", "image and old file differ");
        }
        if (place.kind === "partial") {
          yield place;
          done += 1;
          continue;
        }
        const into = cluster - place.cluster;
        const count = Math.min(head.count - done, place.count - into);
        if (place.kind !== "data") throw new DamageError("E_DIGEST_FILE", "image and old file differ");
        yield {
          kind: "data",
          cluster,
          count,
          hostOffset: place.hostOffset + into * image.geometry.clusterSize,
        };
        done += count;
      }
    }
  } finally {
    await old.close();
  }
}

/** @param place of the new file; undefined: there is to be none. @returns its SHA-256 */
async function write(
  folder: StoredFolder,
  disk: DiskManifest,
  place: NewPlace | undefined,
  shape: Shape,
  signal: AbortSignal | undefined,
): Promise<string> {
  const algorithm = disk.digests?.algorithm ?? "sha256";
  const geometry = { virtualSize: disk.virtualSize, clusterSize: disk.clusterSize };
  const digester = await createDigester(algorithm);
  const image = await readerOf(folder, disk);
  await using checked = new CheckedImage(image, geometry, undefined);
  const header = { algorithm, geometry, complete: disk.mode === "full" };
  const writer =
    place === undefined ? DigestFileWriter.withoutFile(header) : await DigestFileWriter.create(place, header);
  try {
    for await (const run of shape(folder, disk, image)) {
      signal?.throwIfAborted();
      if (run.kind === "zero") writer.add(run, Buffer.alloc(0));
      else if (slotsOf(run) === 0) writer.add(run, Buffer.alloc(0));
      else for (const piece of piecesOf(run, geometry.clusterSize)) await addPiece(piece);
    }
    return (await writer.finish({ sync: true })).sha256;
  } finally {
    await writer.close();
  }

  async function addPiece(run: Exclude<DigestedRun, { kind: "zero" }>): Promise<void> {
    const start = run.cluster * geometry.clusterSize;
    const length = Math.min(run.count * geometry.clusterSize, geometry.virtualSize - start);
    const slots = Buffer.alloc(run.count * geometry.clusterSize);
    await checked.read(run, start, slots.subarray(0, length), ({ message }) => {
      throw new DamageError("E_DAMAGED", message);
    });
    const { kind, cluster, count } = run;
    const masked = run.kind === "partial" ? { dataMask: run.dataMask } : {};
    writer.add(run, digestClusters(digester, { kind, cluster, count, ...masked }, slots, geometry));
  }
}

function* piecesOf(
  run: Exclude<ClusterRun, { kind: "zero" }>,
  clusterSize: number,
): Generator<Exclude<DigestedRun, { kind: "zero" }>> {
  if (run.kind === "partial") {
    yield { ...run, digests: undefined };
    return;
  }
  for (let first = 0; first < run.count; first += MOST_CLUSTERS) {
    const count = Math.min(MOST_CLUSTERS, run.count - first);
    const hostOffset = run.hostOffset + first * clusterSize;
    yield { kind: "data", cluster: run.cluster + first, count, hostOffset, digests: undefined };
  }
}

/** @throws {DamageError} the image is missing, or its header is damaged */
async function readerOf(folder: StoredFolder, disk: DiskManifest): Promise<ImageReader> {
  const geometry = { virtualSize: disk.virtualSize, clusterSize: disk.clusterSize };
  if (!(await folder.find(disk.file))?.isFile()) {
    throw new DamageError("E_DAMAGED", `${disk.file} is missing`);
  }
  const place = folder.at(disk.file);
  if (disk.format === "qcow2") return await Qcow2Reader.open(place);
  return await RawReader.open(place, {
    geometry,
    ...(disk.map ? { mapPath: folder.at(disk.map.file) } : {}),
  });
}
