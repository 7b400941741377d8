import { realpath } from "node:fs/promises";
import { basename, dirname, join, relative, resolve } from "node:path";
import { allOrNone } from "./all-or-none.js";
import { findChain, openChain } from "./chain.js";
import type { OnDamage } from "./damage.js";
import { UsageError } from "./errors.js";
import { isMissing } from "./files.js";
import { createImage, type ImageFormat } from "./image/create.js";
import { damage, type Layer } from "./layer.js";
import { Ledger } from "./ledger.js";
import type { Manifest } from "./manifest.js";
import { NewFiles } from "./new-files.js";
import { ChainSource } from "./overlay.js";
import { Pace, segmentBytesOf, type Window } from "./pace.js";
import { plan } from "./plan.js";
import { Progress } from "./progress.js";
import { type Finished, publish, refuseTarget, temporaryPathFor } from "./publish.js";
import { pull } from "./pull.js";
import { endOf, type PullProgress } from "./pull-image.js";
import type { RateLimit } from "./rate-limit.js";
import type { Repository } from "./repository.js";
import { WriteThrough } from "./write-through.js";

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

const RESTORED_CLUSTER_SIZE = 64 * 1024;
const DISKS_AT_ONCE = 2;

/**
 * Rebuilds disks of a point, each standing alone, under temporary names that become the final ones only when every
 * cluster of every disk was found to be what was backed up: all of them, or none.
 *
 * @throws {DamageError} a layer is missing or not what was written: names disk, point and guest offset
 * @throws {UsageError} a target exists, or lies in the repository
 */
export async function restore(options: RestoreOptions): Promise<RestoredDisk[]> {
  for (const { path } of options.targets) {
    await refuseInside(options.repository, path);
    await refuseTarget(path, options.force);
  }
  await using files = new NewFiles();
  const finished: Finished[] = [];
  const disks = await allOrNone(options.targets, DISKS_AT_ONCE, options.signal, (target, signal) => {
    const temporary = temporaryPathFor(target.path);
    finished.push({ temporary, final: target.path });
    return restoreDisk(options, target, temporary, files, signal);
  });
  await files.close();
  await publish(finished, options);
  files.keep();
  return disks;
}

async function restoreDisk(
  options: RestoreOptions,
  target: RestoreTarget,
  temporary: string,
  files: NewFiles,
  signal: AbortSignal,
): Promise<RestoredDisk> {
  const started = performance.now();
  const { repository, domain, point } = options;
  const links = await findChain(repository, domain, point, target.disk);
  const layers = await openChain(repository, domain, links);
  try {
    const virtualSize = links[0]?.disk.virtualSize ?? 0;
    const geometry = { virtualSize, clusterSize: RESTORED_CLUSTER_SIZE };
    const source = new ChainSource(layers, geometry, failOnDamage);
    const writer = files.add(temporary, await createImage(temporary, { format: target.format, geometry }));
    const segmentBytes = segmentBytesOf(options.window ?? {}, geometry.clusterSize);
    const progress = new Progress<PullProgress>((state) => options.onProgress?.(target.disk, state));
    let readBytes = 0;
    await pull({
      source,
      segments: plan(source.extents(), { geometry, segmentBytes }),
      land: (segment) => new WriteThrough(segment, writer),
      notes: new Ledger({ writer, complete: true }),
      pace: new Pace(options.window ?? {}, segmentBytes),
      reading: { readThrough: 0, mostRead: segmentBytes },
      rateLimit: options.rateLimit,
      signal,
      onSegment: (segment) => {
        readBytes += segment.readBytes;
        progress.note({ virtualSize, position: endOf(segment.runs, geometry), readBytes });
      },
    });
    progress.finish();
    source.assertAllRead();
    const { storedBytes } = await writer.finish({ sync: options.sync });
    return {
      ...target,
      virtualSize,
      readBytes,
      storedBytes,
      chain: layers.map((layer) => layer.pointId),
      proven: layers.every((layer) => layer.disk.digests !== null),
      seconds: (performance.now() - started) / 1000,
    };
  } finally {
    for (const layer of layers) await layer.close();
  }
}

function failOnDamage(layer: Layer): OnDamage {
  return ({ message, guestOffset }) => {
    throw damage(layer.pointId, layer.disk, message, guestOffset);
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
