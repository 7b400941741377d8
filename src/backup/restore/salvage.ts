import { allOrNone } from "../base/in-parallel.js";
import { ChainSource } from "../chain/chain-source.js";
import { type LostExtent, SalvagedChain } from "../chain/salvaged-chain.js";
import { NewFiles } from "../host/new-files.js";
import { type Finished, publish, refuseTarget, temporaryPathFor } from "../host/publish.js";
import { copyImage, type DiskSource } from "../pull/pull-image.js";
import { diskOf } from "../repository/manifest.js";
import { type RestoreOptions, type RestoreTarget, refuseInside } from "./restore.js";

/** Sizes in bytes. */
export interface SalvagedDisk {
  readonly disk: string;
  readonly path: string;
  readonly format: "qcow2" | "raw";
  readonly virtualSize: number;
  /** Bytes that are zeroes in the file because nobody can tell what they were. */
  readonly lostBytes: number;
  /** Where they are, in guest order. */
  readonly lost: readonly LostExtent[];
  /** The points that the other bytes come from, newest first. */
  readonly chain: readonly string[];
  readonly seconds: number;
}

/** Disks are read by this process, without threads, and one after the other. */
const DISKS_AT_ONCE = 1;

/**
 * Restores disks of a damaged point to files: what can be proven by digests as it was, zeroes for the rest.
 * Data of layers without digests is copied as it is.
 *
 * @throws {UsageError} a target exists, or lies in the repository
 * @throws {PreconditionError} `E_TARGET_IN_USE`: a QEMU has a target open for writing
 * @throws {BackupError} a target can't be written, with the file system's code
 * @throws the signal's reason
 */
export async function salvage(options: RestoreOptions): Promise<SalvagedDisk[]> {
  for (const { path } of options.targets) {
    await refuseInside(options.repository, path);
    await refuseTarget(path, options.force);
  }
  await using files = new NewFiles();
  const finished: Finished[] = [];
  const disks = await allOrNone(options.targets, DISKS_AT_ONCE, options.signal, async (target, signal) => {
    const temporary = temporaryPathFor(target.path);
    files.expect(temporary);
    finished.push({ temporary, final: target.path });
    return await salvageDisk({ ...options, signal }, target, temporary);
  });
  await publish(finished, options);
  files.keep();
  return disks;
}

async function salvageDisk(
  options: RestoreOptions,
  { disk: name, path, format }: RestoreTarget,
  temporary: string,
): Promise<SalvagedDisk> {
  const started = performance.now();
  const { repository, domain, point, signal, sync, window, rateLimit } = options;
  const disk = diskOf(point, name);
  if (!disk) throw new RangeError(`point ${point.id} has no disk ${name}`);
  const lost: LostExtent[] = [];
  const onLost = (extent: LostExtent): void => void lost.push(extent);
  await using chain = await SalvagedChain.open(repository, domain, point, disk, { onLost, signal });
  const source = sourceOf(chain);
  await copyImage(source, {
    ...{ imagePath: temporary, format, sync, window, rateLimit, signal },
    onProgress: (state) => options.onProgress?.(name, state),
  });
  const joined = join(lost);
  return {
    ...{ disk: name, path, format, virtualSize: disk.virtualSize, chain: chain.chain },
    lost: joined,
    lostBytes: joined.reduce((sum, { length }) => sum + length, 0),
    seconds: (performance.now() - started) / 1000,
  };
}

function sourceOf(chain: SalvagedChain): DiskSource {
  // The layers tell what is lost by themselves.
  const source = new ChainSource(chain.layers, chain.geometry, () => () => undefined);
  return {
    virtualSize: chain.geometry.virtualSize,
    complete: true,
    readThrough: 0,
    requests: 0,
    begin: () => ({ extents: source.extents(), bytes: source }),
    widen: () => undefined,
  };
}

/** In guest order; neighbours that were lost by the same become one. */
function join(lost: readonly LostExtent[]): LostExtent[] {
  const joined: LostExtent[] = [];
  for (const extent of lost.toSorted((a, b) => a.offset - b.offset)) {
    const last = joined.at(-1);
    const goesOn =
      last?.point === extent.point &&
      last.message === extent.message &&
      last.offset + last.length === extent.offset;
    if (last && goesOn) joined[joined.length - 1] = { ...last, length: last.length + extent.length };
    else joined.push(extent);
  }
  return joined;
}
