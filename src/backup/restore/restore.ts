/**
 * The restore room rebuilds the disks of a point, into new files or over block devices and NBD exports. It
 * also restores the files that the domain needs beside its disks, and makes the definition of a domain on
 * them.
 *
 * Read this file first: it restores disks to files. `restore-source.ts` opens a disk of a point, and
 * `copy-segments.ts` has threads copy it (`copy-threads.ts`, `copy-service.ts`, `copy-worker.ts`). Then read
 * `restore-over.ts`, which writes over a target that exists: `target-writer.ts` takes the bytes and writes
 * them to a `block-target.ts`, either `device-target.ts` or `export-target.ts`. Last come `restored-files.ts`
 * (NVRAM, kernel and the like) and `restored-definition.ts`.
 *
 * No disk gets its file name before all of its data has been compared with the digests that the point has of
 * it. Nothing here changes the repository, starts a domain or touches the old one.
 */

import { addAbortListener } from "node:events";
import { realpath } from "node:fs/promises";
import { basename, dirname, join, relative, resolve } from "node:path";
import { UsageError } from "../base/errors.js";
import { allOrNone } from "../base/in-parallel.js";
import type { Assurance } from "../chain/assurance.js";
import { checkChains } from "../chain/check-chains.js";
import { isMissing } from "../host/durable-files.js";
import { NewFiles } from "../host/new-files.js";
import { type Finished, publish, refuseTarget, temporaryPathFor } from "../host/publish.js";
import type { ImageFormat } from "../image/image.js";
import { createImage } from "../pull/create-image.js";
import { ImageLedger } from "../pull/image-ledger.js";
import { PlainStore } from "../pull/plain-store.js";
import { pull } from "../pull/pull.js";
import type { PullProgress } from "../pull/pull-image.js";
import type { RateLimit } from "../pull/rate-limit.js";
import type { Window } from "../pull/window.js";
import type { Manifest } from "../repository/manifest.js";
import { withRestorable } from "../repository/points-without-damage.js";
import type { Repository } from "../repository/repository.js";
import { COPIED_AT_A_TIME, copySegments } from "./copy-segments.js";
import { CopyThreads } from "./copy-threads.js";
import { RestoreSource } from "./restore-source.js";
import { storeWindow } from "./store-window.js";

export interface RestoreTarget {
  /** The disk's name in the domain. */
  readonly disk: string;
  readonly path: string;
  readonly format: ImageFormat;
}

export interface RestoreOptions {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  readonly point: Manifest;
  readonly targets: readonly RestoreTarget[];
  /** Replace files that exist at the targets' paths. */
  readonly force: boolean;
  /** Flush to stable storage before returning. */
  readonly sync: boolean;
  readonly window?: Window | undefined;
  /** Limit for what is read from the repository, for all disks together. */
  readonly rateLimit?: RateLimit | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((disk: string, progress: PullProgress) => void) | undefined;
}

/** Sizes in bytes. */
export interface RestoredDisk extends Assurance {
  readonly disk: string;
  readonly path: string;
  readonly format: ImageFormat;
  readonly virtualSize: number;
  /** Data that was read from the chain and compared with its digests. */
  readonly readBytes: number;
  /** Guest data in the target, without tables. */
  readonly storedBytes: number;
  /** The points that the bytes came from, newest first. */
  readonly chain: readonly string[];
  readonly seconds: number;
}

const DISKS_AT_ONCE = 2;

/**
 * Restores disks of a point to files, as complete images without backing files. The files have temporary
 * names until every cluster of every disk has been compared with its digest. Then all get their final names;
 * after a failure none does.
 *
 * @throws {DamageError} a layer is missing or damaged. The message names disk, point and guest offset, and
 *   the points that can be restored without it
 * @throws {UsageError} a target exists, or lies in the repository
 * @throws {PreconditionError} `E_TARGET_IN_USE`: a QEMU has a target open for writing
 * @throws {BackupError} a target can't be written, with the file system's code; or a thread failed
 * @throws the signal's reason
 */
export async function restore(options: RestoreOptions): Promise<RestoredDisk[]> {
  const { repository, domain, point, targets, signal } = options;
  for (const { path } of targets) {
    await refuseInside(repository, path);
    await refuseTarget(path, options.force);
  }
  const disks = targets.map(({ disk }) => disk);
  await using threads = new CopyThreads(sizeOf(point, disks));
  // Threads don't hear the signal, and one may be in the middle of a long read.
  using _ = signal && addAbortListener(signal, () => void threads.close());
  if (!repository.isInStore) threads.start();
  try {
    await checkChains(repository, domain, point, disks, signal);
    return await restoreFiles(options, threads);
  } catch (error) {
    throw await withRestorable(error, repository, domain, disks);
  }
}

/** Virtual size of the disks together, in bytes. */
function sizeOf(point: Manifest, names: readonly string[]): number {
  const disks = point.disks.filter(({ name }) => names.includes(name));
  return disks.reduce((sum, { virtualSize }) => sum + virtualSize, 0);
}

async function restoreFiles(options: RestoreOptions, threads: CopyThreads): Promise<RestoredDisk[]> {
  await using files = new NewFiles();
  const finished: Finished[] = [];
  const disks = await allOrNone(options.targets, DISKS_AT_ONCE, options.signal, (target, signal) => {
    const temporary = temporaryPathFor(target.path);
    finished.push({ temporary, final: target.path });
    return restoreFile({ ...options, signal, threads }, target, temporary, files);
  });
  await files.close();
  await publish(finished, options);
  files.keep();
  return disks;
}

async function restoreFile(
  options: RestoreOptions & { readonly threads: CopyThreads },
  target: RestoreTarget,
  temporary: string,
  files: NewFiles,
): Promise<RestoredDisk> {
  const started = performance.now();
  const { disk, path, format } = target;
  const { repository, targets } = options;
  const sharers = Math.min(DISKS_AT_ONCE, targets.length);
  await using source = await RestoreSource.open({
    ...options,
    disk,
    ...(repository.isInStore ? storeWindow(sharers, options) : { preferredBlock: COPIED_AT_A_TIME }),
    onProgress: (state) => options.onProgress?.(disk, state),
  });
  const { geometry, chain, assurance } = source;
  const copy = repository.isInStore ? pullFromStore : copyHere;
  const { storedBytes } = await copy(source, options, { format, temporary }, files);
  return {
    disk,
    path,
    format,
    virtualSize: geometry.virtualSize,
    readBytes: source.readBytes,
    storedBytes,
    chain,
    ...assurance,
    seconds: (performance.now() - started) / 1000,
  };
}

interface NewDisk {
  readonly format: ImageFormat;
  /** Its path until it is published. */
  readonly temporary: string;
}

/** Has threads copy the bytes of image files of this machine. */
async function copyHere(
  source: RestoreSource,
  { threads, window, sync }: RestoreOptions & { readonly threads: CopyThreads },
  { format, temporary }: NewDisk,
  files: NewFiles,
): Promise<{ readonly storedBytes: number }> {
  const { geometry, segmentBytes } = source;
  const writer = files.add(temporary, await createImage(temporary, { format, geometry }));
  const recorder = new ImageLedger({ writer, complete: true });
  const copying = { writer, path: temporary, threads, segmentBytes, recorder, inFlight: window?.inFlight };
  await copySegments({ ...source.beginCopy(), ...copying });
  source.finish();
  await threads.end(temporary);
  for (const done of source.files) threads.notify(done);
  return await writer.finish({ sync });
}

/** Reads an object store on this thread, where its connections are. */
async function pullFromStore(
  source: RestoreSource,
  { sync }: RestoreOptions,
  { format, temporary: path }: NewDisk,
  files: NewFiles,
): Promise<{ readonly storedBytes: number }> {
  const { geometry } = source;
  await using into = await PlainStore.create({ path, format, geometry, complete: true }, files);
  await pull<unknown>({ ...source.begin(), into });
  source.finish();
  return await into.finish({ sync });
}

/**
 * Throws if `path` lies in the repository, whose files other points may need. Links are followed, and nothing
 * has to exist at `path`.
 * @throws {UsageError} `E_TARGET`
 */
export async function refuseInside(repository: Repository, path: string): Promise<void> {
  if (repository.isInStore) return;
  const inside = relative(await repository.realPath(), await realPathOf(resolve(path)));
  if (inside === ".." || inside.startsWith("../")) return;
  const message = `${path} lies in the repository, whose files are never replaced: name a place outside`;
  throw new UsageError("E_TARGET", message, { details: { path } });
}

/**
 * The real path of a file that may not exist yet: the real path of its closest existing folder, and the rest.
 */
async function realPathOf(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch (error) {
    if (!isMissing(error)) throw error;
    return join(await realPathOf(dirname(path)), basename(path));
  }
}
