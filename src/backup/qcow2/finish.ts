import assert from "node:assert/strict";
import { UsageError } from "../base/errors.js";
import type { Geometry } from "../image/image.js";
import { Appender, ImageFile } from "../image/image-file.js";
import { createAt, type NewFile, type NewPlace } from "../image/new-file.js";
import { ENTRY_BYTES, LIMITS, writeCopiedOffset } from "./format.js";
import { encodeHeader, type Qcow2Header } from "./header.js";
import { assertFits, type Layout, layOut } from "./layout.js";
import {
  countL2Tables,
  type HostUse,
  l2Tables,
  refcountBlocks,
  refcountTable,
  type TableRun,
} from "./tables.js";

export interface Qcow2WriterOptions {
  readonly geometry: Geometry;
  readonly backing?: Backing | undefined;
}

/** The backing file that the header names. */
export interface Backing {
  /** Stored unchanged. QEMU looks it up from the new image's folder. */
  readonly name: string;
  readonly format: "qcow2" | "raw";
}

const MIN_CLUSTER_SIZE = 16 * 1024;
const MAX_CLUSTER_SIZE = 2 * 1024 * 1024;
/** qcow2 measures the disk in sectors. */
const SECTOR = 512;

/**
 * Creates the file, which must not exist.
 * @throws {UsageError} the geometry or the backing file's name is beyond what qcow2 can hold
 * @throws the file system's error, with `code`
 */
export async function createQcow2File(path: string, options: Qcow2WriterOptions): Promise<ImageFile> {
  assertPossible(options);
  return await ImageFile.create(path);
}

/** The same for a file that may lie elsewhere. */
export async function createQcow2FileAt(place: NewPlace, options: Qcow2WriterOptions): Promise<NewFile> {
  assertPossible(options);
  // The tables have less than a thousandth of the data's bytes.
  const mostBytes = options.geometry.virtualSize * 1.01 + MAX_CLUSTER_SIZE;
  return await createAt(place, { mostBytes, inOrder: false });
}

function assertPossible({ geometry, backing }: Qcow2WriterOptions): void {
  assertClusterSize(geometry.clusterSize);
  assertFits(geometry, false);
  if (backing) assertName(backing.name);
}

/**
 * Makes a file again what it was before its tables were written, and cuts it off at byte `end`. Its first
 * cluster becomes zeroes, so that it is no image.
 */
export async function cutQcow2File(
  file: ImageFile,
  end: number,
  { clusterSize }: Pick<Geometry, "clusterSize">,
): Promise<void> {
  await file.truncate(end);
  await file.write(Buffer.alloc(Math.min(end, clusterSize)), 0);
}

/** A file with all of its data, which will become an image. */
interface Unfinished extends Qcow2WriterOptions {
  readonly extended: boolean;
  /** Left out if no cluster is compressed. */
  readonly compression?: Qcow2Header["compression"] | undefined;
  /** Clusters from the beginning of the file to the end of the data. The rest is cut off. */
  readonly dataEnd: number;
  /** In guest order; iterated more than once. */
  readonly runs: Iterable<TableRun>;
  /** In file order, without the header and tables. */
  readonly uses: Iterable<HostUse>;
}

/** Completes the image: with `sync`, data reaches stable storage, then the tables, then the header last. */
export async function finishQcow2(
  file: NewFile,
  image: Unfinished,
  options: { readonly sync: boolean },
): Promise<void> {
  const header = await appendTables(file, image, options);
  await file.write(header, 0);
  await file.finish(options);
}

/**
 * Writes the tables behind the data. With `sync`, the data reaches stable storage before the tables, and the
 * tables before this returns.
 * @returns the header, which puts the tables into effect once it is written at byte 0
 */
export async function appendTables(
  file: Pick<NewFile, "truncate" | "write" | "datasync" | "sync">,
  image: Unfinished,
  { sync }: { readonly sync: boolean },
): Promise<Buffer> {
  const { geometry, extended, dataEnd, runs } = image;
  const tables = countL2Tables(runs, { clusterSize: geometry.clusterSize, extended });
  const layout = layOut({ geometry, extended, dataEnd, l2Tables: tables });
  // Cuts off slots behind the last used one, and makes room for the tables.
  await file.truncate(layout.fileSize);
  if (sync) await file.datasync();
  await writeTables(file, layout, image);
  if (sync) await file.sync();
  return headerOf(layout, image);
}

async function writeTables(file: Pick<NewFile, "write">, layout: Layout, image: Unfinished): Promise<void> {
  const { clusterSize } = image.geometry;
  const l1 = Buffer.alloc(layout.l1Clusters * clusterSize);
  const out = new Appender(file, layout.l2Offset);
  for (const { index, bytes } of l2Tables(image.runs, { clusterSize, extended: image.extended })) {
    writeCopiedOffset(l1, out.position, index * ENTRY_BYTES);
    await out.append(bytes);
  }
  await out.append(l1);
  await out.append(refcountTable(layout, clusterSize));
  for (const block of refcountBlocks(image.uses, layout, clusterSize)) await out.append(block);
  await out.flush();
  assert.equal(out.position, layout.fileSize);
}

function headerOf(layout: Layout, { geometry, extended, compression, backing }: Unfinished): Buffer {
  const { virtualSize, clusterSize } = geometry;
  return encodeHeader({
    clusterBits: Math.log2(clusterSize),
    virtualSize: Math.ceil(virtualSize / SECTOR) * SECTOR,
    l1Entries: layout.l1Entries,
    l1Offset: layout.l1Offset,
    refcountTableOffset: layout.refcountTableOffset,
    refcountTableClusters: layout.refcountTableClusters,
    extended,
    compression,
    backingFile: backing?.name,
    backingFormat: backing?.format,
  });
}

function assertClusterSize(clusterSize: number): void {
  const powerOfTwo = Number.isInteger(Math.log2(clusterSize));
  if (powerOfTwo && clusterSize >= MIN_CLUSTER_SIZE && clusterSize <= MAX_CLUSTER_SIZE) return;
  throw new UsageError(
    "E_CLUSTER_SIZE",
    `a cluster size of ${clusterSize} bytes is not possible: use a power of two from 16 KiB to 2 MiB`,
    { details: { clusterSize } },
  );
}

function assertName(name: string): void {
  const bytes = Buffer.byteLength(name);
  if (bytes > 0 && bytes <= LIMITS.backingName) return;
  throw new UsageError(
    "E_BACKING_NAME",
    `the backing file's name has ${bytes} bytes; qcow2 holds 1 to ${LIMITS.backingName}`,
    { details: { name } },
  );
}
