import { randomUUID } from "node:crypto";
import { DamageError } from "../base/errors.js";
import type { DigestedRun } from "../chain/checked-image.js";
import { CheckedImage } from "../chain/checked-image.js";
import { createDigester, digestClusters } from "../digest/digest.js";
import { DigestFileReader } from "../digest/digest-file-reader.js";
import { DigestFileWriter } from "../digest/digest-file-writer.js";
import type { HeldFolder } from "../host/held-folder.js";
import { sha256OfFile } from "../host/plain-files.js";
import { type ClusterRun, type ImageReader, slotsOf } from "../image/image.js";
import type { Guard } from "../image/image-file.js";
import { RawReader } from "../image/raw-reader.js";
import { Qcow2Reader } from "../qcow2/reader.js";
import type { DiskManifest } from "../repository/manifest.js";

type DiskDigests = NonNullable<DiskManifest["digests"]>;

/** Most clusters whose digests are made at a time. */
const MOST_CLUSTERS = 64;

interface RemakeOptions {
  /** Only find out whether it can be made again: nothing is written. */
  readonly dryRun: boolean;
  readonly guard: Guard;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Whether the digest file of a disk is as the manifest says, by its SHA-256.
 * @param folder of the point
 */
export async function isDigestFileRight(
  folder: HeldFolder,
  { digests }: DiskManifest,
  signal?: AbortSignal,
): Promise<boolean> {
  if (!digests) return true;
  const found = await folder.find(digests.file);
  if (!found?.isFile()) return false;
  return (await sha256OfFile(folder.at(digests.file), signal)) === digests.sha256;
}

/**
 * Makes a lost or damaged digest file again out of its image. It gets its name only if its SHA-256 is the one
 * in the manifest: then image and file both are what they were. If the image is damaged too, nothing is
 * changed.
 * @param folder of the point
 * @returns whether the file could be made
 * @throws the file system's error
 */
export async function remakeDigests(
  folder: HeldFolder,
  disk: DiskManifest,
  options: RemakeOptions,
): Promise<boolean> {
  const { digests } = disk;
  if (!digests) return false;
  // The records of runs of zeroes lie as the backup had them. Where they were not joined, only the old file
  // tells.
  for (const shape of [shapeOfImage, shapeOfOldFile]) {
    try {
      if (await remakeIn(shape, folder, disk, { ...options, digests })) return true;
    } catch (error) {
      if (!(error instanceof DamageError)) throw error;
    }
  }
  return false;
}

async function remakeIn(
  shape: Shape,
  folder: HeldFolder,
  disk: DiskManifest,
  { digests, dryRun, guard, signal }: RemakeOptions & { readonly digests: DiskDigests },
): Promise<boolean> {
  if (dryRun) return (await write(folder, disk, undefined, shape, signal)) === digests.sha256;
  const prefix = `.${digests.file}.`;
  for (const name of await folder.names()) if (name.startsWith(prefix)) await folder.unlink(name);
  const temporary = `${prefix}${randomUUID()}`;
  try {
    if ((await write(folder, disk, temporary, shape, signal)) !== digests.sha256) return false;
    await guard();
    await folder.rename(temporary, digests.file);
    await folder.shareFiles();
    await folder.sync();
    return true;
  } finally {
    await folder.unlink(temporary);
  }
}

/** The runs of an image, as the records of its digest file divide them. */
type Shape = (folder: HeldFolder, disk: DiskManifest, image: ImageReader) => AsyncIterable<ClusterRun>;

const shapeOfImage: Shape = (_folder, _disk, image) => image.runs();

/** The heads of the records are a small part of the file, and mostly they are not what is damaged. */
async function* shapeOfOldFile(
  folder: HeldFolder,
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

/** @param temporary the name of the new file; undefined: there is to be none. @returns its SHA-256 */
async function write(
  folder: HeldFolder,
  disk: DiskManifest,
  temporary: string | undefined,
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
    temporary === undefined
      ? DigestFileWriter.withoutFile(header)
      : await DigestFileWriter.create(folder.at(temporary), header);
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
async function readerOf(folder: HeldFolder, disk: DiskManifest): Promise<ImageReader> {
  const geometry = { virtualSize: disk.virtualSize, clusterSize: disk.clusterSize };
  if (!(await folder.find(disk.file))?.isFile()) {
    throw new DamageError("E_DAMAGED", `${disk.file} is missing`);
  }
  const path = folder.at(disk.file);
  if (disk.format === "qcow2") return await Qcow2Reader.open(path);
  return await RawReader.open(path, {
    geometry,
    ...(disk.map ? { mapPath: folder.at(disk.map.file) } : {}),
  });
}
