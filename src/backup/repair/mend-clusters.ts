import type { Damage, OnDamage } from "../base/damage.js";
import type { DigestedRun } from "../chain/checked-image.js";
import type { Layer } from "../chain/layer.js";
import { storedRuns } from "../chain/stored-runs.js";
import { createDigester, digestClusters } from "../digest/digest.js";
import { dataStretches, slotsOf } from "../image/image.js";
import { type ClusterSource, ZERO_SOURCE } from "./cluster-sources.js";

/** Bytes that are read at a time. Only if something in them is damaged each cluster is looked at. */
const PIECE_BYTES = 4 * 1024 * 1024;

/**
 * A cluster whose content is not what its digest says; or one, or a part of one, that is not zero where the
 * digest file says so.
 */
export interface DamagedCluster {
  /** Bytes of the disk. */
  readonly guestOffset: number;
  readonly length: number;
  /** What a source has for it; undefined: none has the right content, or it can't be written by itself. */
  readonly mend: ClusterMend | undefined;
}

export interface ClusterMend {
  /** The name of the source. */
  readonly from: string;
  /** The right content, as the digest says. */
  readonly content: Buffer;
  /** Reads it once more, for whoever can't keep all contents; undefined: the source has it no more. */
  readonly again: () => Promise<Buffer | undefined>;
  /** Which bytes of the content go where in the file. */
  readonly places: readonly {
    readonly offset: number;
    readonly length: number;
    readonly position: number;
  }[];
}

interface LookOptions {
  /** In which the right content is looked for. */
  readonly sources: readonly ClusterSource[];
  /** Whether compressed clusters are looked at too. They can't be mended: their streams lie back to back. */
  readonly compressed: boolean;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Looks at the clusters that an image stores, and finds out which are damaged, and what is right instead.
 * Nothing is changed.
 * @throws {DamageError} the digest file is damaged
 */
export async function* damagedClusters(
  layer: Layer,
  { sources, compressed, signal }: LookOptions,
): AsyncGenerator<DamagedCluster> {
  if (!layer.disk.digests) return;
  const { clusterSize, virtualSize } = layer.geometry;
  // Tables that contradict the digest file are no place to write to.
  for await (const run of storedRuns(layer, () => undefined)) {
    if (run.kind === "zero") {
      yield* nonzeroClusters(layer, run, signal);
      continue;
    }
    if (run.kind === "partial") {
      yield* nonzeroPlaces((onDamage) => layer.expectZeroSubclusters(run, onDamage));
      if (slotsOf(run) === 0) continue;
    }
    const isCompressed = layer.isCompressed(run);
    if (isCompressed && !compressed) continue;
    const atOnce = Math.max(1, Math.floor(PIECE_BYTES / clusterSize));
    for (let first = 0; first < run.count; first += atOnce) {
      signal?.throwIfAborted();
      const count = Math.min(atOnce, run.count - first);
      if (!(await isDamaged(layer, run, run.cluster + first, count))) continue;
      for (let i = first; i < first + count; i += 1) {
        const cluster = run.cluster + i;
        if (!(await isDamaged(layer, run, cluster, 1))) continue;
        const guestOffset = cluster * clusterSize;
        const length = Math.min(clusterSize, virtualSize - guestOffset);
        const mend = isCompressed ? undefined : await mendOf(layer, run, cluster, length, sources);
        yield { guestOffset, length, mend };
      }
    }
  }
}

/** A raw image has no tables, so its bytes alone are the zeroes that the digest file tells of. */
async function* nonzeroClusters(
  layer: Layer,
  run: DigestedRun,
  signal: AbortSignal | undefined,
): AsyncGenerator<DamagedCluster> {
  const { clusterSize, virtualSize } = layer.geometry;
  const end = Math.min((run.cluster + run.count) * clusterSize, virtualSize);
  for (let at = run.cluster * clusterSize; at < end; at += PIECE_BYTES) {
    signal?.throwIfAborted();
    yield* nonzeroPlaces((onDamage) => layer.expectZeroes(at, Math.min(PIECE_BYTES, end - at), onDamage));
  }
}

/** @param look of a raw image, where what has a guest offset has the same one in the file */
async function* nonzeroPlaces(look: (onDamage: OnDamage) => Promise<void>): AsyncGenerator<DamagedCluster> {
  const found: Damage[] = [];
  await look((damage) => found.push(damage));
  for (const { guestOffset = 0, length = 0 } of found) {
    const content = Buffer.alloc(length);
    const places = [{ offset: 0, length, position: guestOffset }];
    const mend = { from: ZERO_SOURCE.name, content, again: async () => Buffer.alloc(length), places };
    yield { guestOffset, length, mend };
  }
}

async function isDamaged(layer: Layer, run: DigestedRun, cluster: number, count: number): Promise<boolean> {
  const { clusterSize, virtualSize } = layer.geometry;
  const guestOffset = cluster * clusterSize;
  const length = Math.min(count * clusterSize, virtualSize - guestOffset);
  let isDamaged = false;
  await layer.read(run, guestOffset, Buffer.allocUnsafe(length), () => {
    isDamaged = true;
  });
  return isDamaged;
}

async function mendOf(
  { disk, geometry }: Layer,
  run: DigestedRun,
  cluster: number,
  length: number,
  sources: readonly ClusterSource[],
): Promise<ClusterMend | undefined> {
  if (!disk.digests || run.kind === "zero" || !run.digests) return undefined;
  const digester = await createDigester(disk.digests.algorithm);
  const at = (cluster - run.cluster) * digester.size;
  const expected = Buffer.from(run.digests.subarray(at, at + digester.size));
  const { kind } = run;
  const masked = run.kind === "partial" ? { dataMask: run.dataMask } : {};
  const rightContent = async (source: ClusterSource): Promise<Buffer | undefined> => {
    const slot = Buffer.alloc(geometry.clusterSize);
    const content = slot.subarray(0, length);
    if (!(await source.read(cluster * geometry.clusterSize, content))) return undefined;
    const found = digestClusters(digester, { kind, cluster, count: 1, ...masked }, slot, geometry);
    return found.equals(expected) ? content : undefined;
  };
  const hostOffset = run.hostOffset + (cluster - run.cluster) * geometry.clusterSize;
  const stretches =
    run.kind === "partial" ? dataStretches(run, geometry) : [{ offset: 0, length: geometry.clusterSize }];
  const places = stretches.flatMap((stretch) => {
    const bytes = Math.min(stretch.length, length - stretch.offset);
    return bytes > 0
      ? [{ offset: stretch.offset, length: bytes, position: hostOffset + stretch.offset }]
      : [];
  });
  for (const source of sources) {
    const content = await rightContent(source);
    if (content) return { from: source.name, content, again: () => rightContent(source), places };
  }
  return undefined;
}
