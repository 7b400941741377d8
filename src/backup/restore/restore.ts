import { addAbortListener } from "node:events";
import { realpath } from "node:fs/promises";
import { basename, dirname, join, relative, resolve } from "node:path";
import { UsageError } from "../base/errors.js";
import { allOrNone } from "../base/in-parallel.js";
import { checkChains } from "../chain/check-chains.js";
import { isMissing } from "../host/durable-files.js";
import { NewFiles } from "../host/new-files.js";
import { type Finished, publish, refuseTarget, temporaryPathFor } from "../host/publish.js";
import type { ImageFormat } from "../image/image.js";
import { createImage } from "../pull/create-image.js";
import { ImageLedger } from "../pull/image-ledger.js";
import type { PullProgress } from "../pull/pull-image.js";
import type { RateLimit } from "../pull/rate-limit.js";
import type { Window } from "../pull/window.js";
import type { Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";
import { withRestorable } from "../repository/restorable-points.js";
import { COPIED_AT_A_TIME, copySegments } from "./copy-segments.js";
import { CopyThreads } from "./copy-threads.js";
import { RestoreSource } from "./restore-source.js";

export interface RestoreTarget {
  /** The disk's name in the domain. */
  readonly disk: string;
  readonly path: string;
  readonly format: ImageFormat;
}

export interface RestoreOptions {
  readonly repository: Repository;
  /** By its folder in the repository. */
  readonly domain: string;
  readonly point: Manifest;
  readonly targets: readonly RestoreTarget[];
  /** Replace files that are at the targets' paths. */
  readonly force: boolean;
  readonly sync: boolean;
  readonly window?: Window | undefined;
  /** Of what is read from the repository, all disks together. */
  readonly rateLimit?: RateLimit | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((disk: string, progress: PullProgress) => void) | undefined;
}

/** Sizes in bytes. */
export interface RestoredDisk {
  readonly disk: string;
  readonly path: string;
  readonly format: ImageFormat;
  readonly virtualSize: number;
  /** What was read from the chain and compared with its digests. */
  readonly readBytes: number;
  /** Guest data in the target, without tables. */
  readonly storedBytes: number;
  /** The points that the bytes came from, newest first. */
  readonly chain: readonly string[];
  /** False where a layer has no digests: its data was copied unproven. */
  readonly proven: boolean;
  readonly seconds: number;
}

const DISKS_AT_ONCE = 2;

/**
 * Rebuilds disks of a point, each standing alone, under temporary names that become the final ones only when every
 * cluster of every disk was found to be what was backed up: all of them, or none.
 *
 * @throws {DamageError} a layer is missing or not what was written: names disk, point and guest offset, and which points
 *   can be restored without it
 * @throws {UsageError} a target exists, or lies in the repository
 */
export async function restore(options: RestoreOptions): Promise<RestoredDisk[]> {
  const { repository, domain, point, targets, signal } = options;
  for (const { path } of targets) {
    await refuseInside(repository, path);
    await refuseTarget(path, options.force);
  }
  const disks = targets.map(({ disk }) => disk);
  await using threads = new CopyThreads(sizeOf(point, disks));
  // A thread may be in the midst of a long read.
  using _ = signal && addAbortListener(signal, () => void threads.close());
  threads.start();
  try {
    await checkChains(repository, domain, point, disks, signal);
    return await restoreFiles(options, threads);
  } catch (error) {
    throw await withRestorable(error, repository, domain, disks);
  }
}

/** Bytes of the disks. */
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
  const { threads, window = {} } = options;
  await using source = await RestoreSource.open({
    ...options,
    disk,
    preferredBlock: COPIED_AT_A_TIME,
    onProgress: (state) => options.onProgress?.(disk, state),
  });
  const { geometry, segmentBytes, chain, proven } = source;
  const writer = files.add(temporary, await createImage(temporary, { format, geometry }));
  const recorder = new ImageLedger({ writer, complete: true });
  const into = { writer, path: temporary, threads, segmentBytes, recorder, inFlight: window.inFlight };
  await copySegments({ ...source.begin(), ...into });
  source.finish();
  for (const done of [temporary, ...source.files]) threads.notify(done);
  const { storedBytes } = await writer.finish({ sync: options.sync });
  return {
    disk,
    path,
    format,
    virtualSize: geometry.virtualSize,
    readBytes: source.readBytes,
    storedBytes,
    chain,
    proven,
    seconds: (performance.now() - started) / 1000,
  };
}

/**
 * Whether or not anything is at `path` yet, and whatever links lead there.
 * @throws {UsageError} it lies in the repository, whose files other points may need
 */
export async function refuseInside(repository: Repository, path: string): Promise<void> {
  const inside = relative(await realpath(repository.path), await realPlace(resolve(path)));
  if (inside === ".." || inside.startsWith("../")) return;
  const message = `${path} lies in the repository, whose files are never replaced: name a place outside`;
  throw new UsageError("E_TARGET", message, { details: { path } });
}

/** Where a path leads that may not exist yet: the real path of what does, and the rest of it. */
async function realPlace(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch (error) {
    if (!isMissing(error)) throw error;
    return join(await realPlace(dirname(path)), basename(path));
  }
}
