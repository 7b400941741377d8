import { findChain, openChain } from "./chain.js";
import type { Geometry, ImageWriter } from "./image/image.js";
import { Qcow2Writer } from "./image/qcow2-writer.js";
import { RawWriter } from "./image/raw-writer.js";
import { damage, type Layer, type OnDamage } from "./layer.js";
import type { Manifest } from "./manifest.js";
import { NewFiles } from "./new-files.js";
import { ChainSource } from "./overlay.js";
import { plan } from "./plan.js";
import { publish, refuseExisting, temporaryPathFor } from "./publish.js";
import { pull } from "./pull.js";
import { DEFAULT_WINDOW, type ImageFormat, type PullProgress, type Window } from "./pull-image.js";
import type { RateLimit } from "./rate-limit.js";
import type { Repository } from "./repository.js";

export interface RestoreOptions {
  readonly repository: Repository;
  readonly point: Manifest;
  readonly diskName: string;
  readonly targetPath: string;
  readonly format: ImageFormat;
  /** Replace what is at `targetPath`. */
  readonly force: boolean;
  readonly sync: boolean;
  readonly window?: Window | undefined;
  /** Of what is read from the repository; may be shared by several disks. */
  readonly rateLimit?: RateLimit | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: PullProgress) => void) | undefined;
}

/** Sizes in bytes. */
export interface RestoreResult {
  readonly disk: string;
  readonly path: string;
  readonly format: ImageFormat;
  readonly virtualSize: number;
  /** What was read from the chain and compared with its digests. */
  readonly readBytes: number;
  readonly storedBytes: number;
  /** The points that the bytes came from, newest first. */
  readonly chain: readonly string[];
  /** False where a layer has no digests: its data was copied unproven. */
  readonly proven: boolean;
  readonly seconds: number;
}

const RESTORED_CLUSTER_SIZE = 64 * 1024;

/**
 * Rebuilds one disk of a point, standing alone, under a temporary name that becomes the final one only when every
 * cluster was found to be what was backed up.
 *
 * @throws {DamageError} a layer is missing or not what was written: names disk, point and guest offset
 * @throws {UsageError} the target exists
 */
export async function restoreDisk(options: RestoreOptions): Promise<RestoreResult> {
  const started = performance.now();
  const { repository, point, signal } = options;
  await refuseExisting(options.targetPath, options.force);
  const links = await findChain(repository, point, options.diskName);
  const layers = await openChain(repository, links);
  try {
    const geometry = { virtualSize: links[0]?.disk.virtualSize ?? 0, clusterSize: RESTORED_CLUSTER_SIZE };
    const source = new ChainSource(layers, geometry, failOnDamage);
    const temporary = temporaryPathFor(options.targetPath);

    await using files = new NewFiles();
    const writer = files.add(temporary, await createTarget(temporary, options.format, geometry));
    const window = options.window ?? DEFAULT_WINDOW;
    const segmentBytes = Math.max(window.requestSize, geometry.clusterSize);
    let readBytes = 0;
    await pull({
      source,
      segments: plan(source.extents(), { geometry, segmentBytes }),
      writer,
      complete: true,
      lanes: Math.max(1, Math.floor(window.inFlight / segmentBytes)),
      segmentBytes,
      rateLimit: options.rateLimit,
      signal,
      onSegment: (segment) => {
        readBytes += segment.readBytes;
        options.onProgress?.({ virtualSize: geometry.virtualSize, position: segment.position, readBytes });
      },
    });
    const { storedBytes } = await writer.finish({ sync: options.sync });
    await files.close();
    await publish([{ temporary, final: options.targetPath }], options);
    files.keep();
    return {
      disk: options.diskName,
      path: options.targetPath,
      format: options.format,
      virtualSize: geometry.virtualSize,
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

async function createTarget(path: string, format: ImageFormat, geometry: Geometry): Promise<ImageWriter> {
  switch (format) {
    case "qcow2":
      return await Qcow2Writer.create(path, { geometry });
    case "raw":
      return await RawWriter.create(path, { geometry });
    default:
      return format satisfies never;
  }
}
