import { dirname, join, resolve } from "node:path";
import { allOrNone } from "./all-or-none.js";
import { findParentLink, type Link } from "./chain.js";
import { DamageError } from "./errors.js";
import type { ImageFormat } from "./image/create.js";
import { checkQcow2 } from "./image/qcow2-check.js";
import { encodeHeader, INCOMPATIBLE } from "./image/qcow2-header.js";
import { Qcow2Reader } from "./image/qcow2-reader.js";
import { type Damage, isUnreadable, Layer, type LayerRun, type OnDamage } from "./layer.js";
import type { DiskManifest, Manifest } from "./manifest.js";
import type { Repository } from "./repository.js";
import { dataStretches } from "./settle.js";

/** One thing that is not as it was written; `disk` is left out where it concerns the point as a whole. */
export interface Finding extends Damage {
  readonly point: string;
  readonly disk?: string | undefined;
}

export interface DiskReport {
  readonly disk: string;
  /** Bytes whose digests were compared. */
  readonly verifiedBytes: number;
  /** False where the point has no digests: only chain and structure could be looked at. */
  readonly digests: boolean;
}

export interface PointReport {
  readonly id: string;
  readonly disks: readonly DiskReport[];
  readonly findings: readonly Finding[];
}

export interface VerifyOptions {
  readonly signal?: AbortSignal | undefined;
  /** Bytes of a disk whose digests were compared, of all that it stores. */
  readonly onProgress?: ((point: string, disk: string, verified: number, stored: number) => void) | undefined;
}

/** A long row of damaged clusters is told by its first ones. */
const MAX_FINDINGS = 100;
const READ_BYTES = 1024 * 1024;
const POINTS_AT_ONCE = 2;

/**
 * Looks at every stored byte of the given points: manifests, chain, image structure, tables against the digest file,
 * data against its digests. Goes on after a damage, so that the report names them all (up to 100 a disk).
 *
 * @param ids points of `domain`, by their folders' names
 */
export async function verifyPoints(
  repository: Repository,
  domain: string,
  ids: readonly string[],
  options: VerifyOptions = {},
): Promise<PointReport[]> {
  return await allOrNone(ids, POINTS_AT_ONCE, options.signal, (id, signal) =>
    verifyPoint(repository, domain, id, { ...options, signal }),
  );
}

async function verifyPoint(
  repository: Repository,
  domain: string,
  id: string,
  options: VerifyOptions,
): Promise<PointReport> {
  const findings: Finding[] = [];
  let point: Manifest;
  try {
    point = await repository.point(domain, id);
  } catch (error) {
    if (!(error instanceof DamageError)) throw error;
    return { id, disks: [], findings: [{ point: id, message: error.message }] };
  }
  const disks: DiskReport[] = [];
  for (const disk of point.disks) {
    const note = noteUpTo(MAX_FINDINGS, findings, id, disk);
    disks.push(await verifyDisk(repository, domain, { point, disk }, note, options));
  }
  return { id, disks, findings };
}

/** Adds findings of one disk to the list; of more than `most` it tells only that there are more. */
function noteUpTo(most: number, findings: Finding[], point: string, disk: DiskManifest): OnDamage {
  let noted = 0;
  return (damage) => {
    noted += 1;
    if (noted <= most) findings.push({ point, disk: disk.name, ...damage });
    else if (noted === most + 1)
      findings.push({ point, disk: disk.name, message: "and more; the rest is not listed" });
  };
}

async function verifyDisk(
  repository: Repository,
  domain: string,
  link: Link,
  note: OnDamage,
  options: VerifyOptions,
): Promise<DiskReport> {
  const { point, disk } = link;
  let verifiedBytes = 0;
  try {
    // One step is enough: the parent is looked at as a point of its own.
    const parent = disk.parent === null ? undefined : await findParentLink(repository, domain, link);
    const folder = repository.pointFolder(domain, point.id);
    await using layer = await Layer.open(folder, point.id, disk);
    if (disk.format === "qcow2") {
      const backing = parent && {
        path: resolve(repository.pointFolder(domain, parent.point.id), parent.disk.file),
        format: parent.disk.format,
      };
      await verifyStructure(join(folder, disk.file), backing, note, options.signal);
    }
    const onBytes = (bytes: number): void => {
      verifiedBytes += bytes;
      options.onProgress?.(point.id, disk.name, verifiedBytes, disk.dataBytes);
    };
    await verifyData(layer, note, onBytes, options.signal);
  } catch (error) {
    if (isUnreadable(error)) note({ message: `the file system cannot read it: ${error.message}` });
    else if (error instanceof DamageError) {
      const offset = error.details["guestOffset"];
      note({ message: error.message, ...(typeof offset === "number" ? { guestOffset: offset } : {}) });
    } else throw error;
  }
  return { disk: disk.name, verifiedBytes, digests: disk.digests !== null };
}

/**
 * The image by itself, and its header byte for byte: stock QEMU goes by that, not by our manifest, and refuses an
 * image for bits that we would not look at.
 */
async function verifyStructure(
  path: string,
  backing: { readonly path: string; readonly format: ImageFormat } | undefined,
  note: OnDamage,
  signal: AbortSignal | undefined,
): Promise<void> {
  for (const { message, guestOffset, severity } of await checkQcow2(path, signal ? { signal } : {})) {
    if (severity === "damage") note({ message, guestOffset });
  }
  await using image = await Qcow2Reader.open(path);
  const { header } = image;
  const named = header.backingFile === undefined ? undefined : resolve(dirname(path), header.backingFile);
  if (named !== backing?.path || header.backingFormat !== backing?.format) {
    const found =
      header.backingFile === undefined ? "none" : `${header.backingFile} (${header.backingFormat})`;
    const wanted = backing === undefined ? "none" : `${backing.path} (${backing.format})`;
    note({ message: `its header names the backing file ${found}, the point's parent is ${wanted}` });
  }
  const extended = (header.incompatible & INCOMPATIBLE.EXTENDED_L2) !== 0;
  const expected = Buffer.alloc(header.clusterSize);
  encodeHeader({ ...header, extended }).copy(expected);
  const present = Buffer.alloc(header.clusterSize);
  await image.readHost(0, present);
  if (!present.equals(expected)) note({ message: "its header has bytes that no backup writes" });
}

async function verifyData(
  layer: Layer,
  note: OnDamage,
  onBytes: (bytes: number) => void,
  signal: AbortSignal | undefined,
): Promise<void> {
  const buffer = Buffer.allocUnsafe(Math.max(READ_BYTES, layer.geometry.clusterSize));
  const { clusterSize, virtualSize } = layer.geometry;
  let next = 0;
  const gapUpTo = async (offset: number): Promise<void> => {
    if (layer.complete) await layer.expectZeroes(next, offset - next, note, signal);
  };
  for await (const run of layer.runs(note)) {
    await gapUpTo(run.cluster * clusterSize);
    next = (run.cluster + run.count) * clusterSize;
    if (run.kind === "zero")
      await layer.expectZeroes(run.cluster * clusterSize, run.count * clusterSize, note, signal);
    for (const { offset, length } of dataOf(run, layer)) {
      for (let at = offset; at < offset + length; at += buffer.length) {
        signal?.throwIfAborted();
        const target = buffer.subarray(0, Math.min(buffer.length, offset + length - at));
        await layer.read(run, at, target, note);
        onBytes(target.length);
      }
    }
  }
  await gapUpTo(virtualSize);
}

/** Where a run's data lies on the disk. */
function dataOf(run: LayerRun, layer: Layer): { offset: number; length: number }[] {
  const { clusterSize, virtualSize } = layer.geometry;
  const offset = run.cluster * clusterSize;
  if (run.kind === "zero") return [];
  if (run.kind === "data")
    return [{ offset, length: Math.min(run.count * clusterSize, virtualSize - offset) }];
  return dataStretches(run, layer.geometry).map((s) => ({ offset: offset + s.offset, length: s.length }));
}
