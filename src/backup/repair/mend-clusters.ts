import type { DigestedRun } from "../chain/checked-image.js";
import type { Layer } from "../chain/layer.js";
import { createDigester, digestClusters } from "../digest/digest.js";
import { dataStretches, slotsOf } from "../image/image.js";
import { type Guard, ImageFile } from "../image/image-file.js";
import type { ClusterSource } from "./cluster-sources.js";

/** A damaged cluster of which a source has the right content. */
interface MendedCluster {
  /** Bytes of the disk. */
  readonly guestOffset: number;
  readonly length: number;
  /** The name of the source. */
  readonly from: string;
}

interface MendOptions {
  readonly sources: readonly ClusterSource[];
  /** The path of the image. */
  readonly path: string;
  /** Only find out what could be mended. */
  readonly dryRun: boolean;
  readonly guard: Guard;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Looks at every cluster that an image stores as it is, and writes the right content over damaged ones, where
 * a source has what the digest says. Only bytes that are damaged anyway are overwritten, so a mend that is
 * killed loses nothing. Compressed clusters are left alone: their streams lie back to back.
 */
export async function mendClusters(layer: Layer, options: MendOptions): Promise<MendedCluster[]> {
  if (!layer.disk.digests) return [];
  const { clusterSize, virtualSize } = layer.geometry;
  const mended: MendedCluster[] = [];
  let file: ImageFile | undefined;
  try {
    // Tables that contradict the digest file are no place to write to.
    for await (const run of layer.runs(() => undefined)) {
      options.signal?.throwIfAborted();
      if (slotsOf(run) === 0 || run.kind === "zero" || layer.isCompressed(run)) continue;
      for (let i = 0; i < run.count; i += 1) {
        const cluster = run.cluster + i;
        const guestOffset = cluster * clusterSize;
        const length = Math.min(clusterSize, virtualSize - guestOffset);
        if (!(await isDamaged(layer, run, guestOffset, length))) continue;
        const found = await rightContent(layer, run, cluster, length, options.sources);
        if (!found) continue;
        if (!options.dryRun) {
          file ??= await ImageFile.openForWriting(options.path, options.guard);
          const hostOffset = run.hostOffset + i * clusterSize;
          await writeCluster(file, layer, run, { cluster, hostOffset, content: found.content });
        }
        mended.push({ guestOffset, length, from: found.from });
      }
    }
    await file?.sync();
  } finally {
    await file?.close();
  }
  return mended;
}

async function isDamaged(
  layer: Layer,
  run: DigestedRun,
  guestOffset: number,
  length: number,
): Promise<boolean> {
  let isDamaged = false;
  await layer.read(run, guestOffset, Buffer.allocUnsafe(length), () => {
    isDamaged = true;
  });
  return isDamaged;
}

async function rightContent(
  layer: Layer,
  run: DigestedRun,
  cluster: number,
  length: number,
  sources: readonly ClusterSource[],
): Promise<{ readonly content: Buffer; readonly from: string } | undefined> {
  const { disk, geometry } = layer;
  if (!disk.digests || run.kind === "zero" || !run.digests) return undefined;
  const digester = await createDigester(disk.digests.algorithm);
  const at = (cluster - run.cluster) * digester.size;
  const expected = run.digests.subarray(at, at + digester.size);
  const masked = run.kind === "partial" ? { dataMask: run.dataMask } : {};
  for (const source of sources) {
    const content = Buffer.alloc(geometry.clusterSize);
    if (!(await source.read(cluster * geometry.clusterSize, content.subarray(0, length)))) continue;
    const found = digestClusters(
      digester,
      { kind: run.kind, cluster, count: 1, ...masked },
      content,
      geometry,
    );
    if (found.equals(expected)) return { content: content.subarray(0, length), from: source.name };
  }
  return undefined;
}

async function writeCluster(
  file: ImageFile,
  { geometry }: Layer,
  run: DigestedRun,
  {
    cluster,
    hostOffset,
    content,
  }: { readonly cluster: number; readonly hostOffset: number; readonly content: Buffer },
): Promise<void> {
  const stretches =
    run.kind === "partial" ? dataStretches(run, geometry) : [{ offset: 0, length: content.length }];
  for (const { offset, length } of stretches) {
    const size = Math.min(length, geometry.virtualSize - cluster * geometry.clusterSize - offset);
    await file.write(content.subarray(offset, offset + size), hostOffset + offset);
  }
}
