/**
 * What the digests of a chain say of a disk, without a look at the chain's images: of which clusters they
 * know the content, and what it must be. So a disk can be compared with its chain by reading the disk alone.
 */

import type { OnDamage } from "../base/damage.js";
import { closeAll } from "../base/in-parallel.js";
import { DIGEST_ALGORITHMS, type DigestAlgorithm } from "../digest/algorithms.js";
import { createDigester, digestClusters } from "../digest/digest.js";
import { DigestFileReader } from "../digest/digest-file-reader.js";
import { dataBytesOf, type Geometry } from "../image/image.js";
import { sha256Of } from "../image/readable-file.js";
import type { DiskManifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import type { LayerRun } from "./agreed-runs.js";
import type { Link } from "./chain.js";
import { checkDigestHeader, damage, failOnDamage, Layer, plainFile } from "./layer.js";
import { seenThrough } from "./overlay.js";
import { SeenParts } from "./seen-parts.js";

/** A stretch of the disk whose content is known. Offsets and lengths are bytes of the guest. */
export type KnownRun = KnownZeroes | KnownClusters;

interface KnownZeroes {
  readonly kind: "zero";
  readonly offset: number;
  readonly length: number;
}

/** Clusters side by side, each with a digest. */
export interface KnownClusters {
  readonly kind: "digests";
  readonly offset: number;
  /** Ends with the layer, if that is inside the last cluster. */
  readonly length: number;
  readonly clusterSize: number;
  readonly count: number;
  readonly algorithm: DigestAlgorithm;
  /** Of a cluster that is defined in part: its data subclusters, since its digest covers nothing else. */
  readonly dataMask?: number | undefined;
  /**
   * The digests of `count` clusters, one after the other.
   * @param first index of the first cluster
   * @throws {DamageError} the digest file ends too early
   */
  digests(first: number, count: number): Promise<Buffer>;
  /**
   * The indexes of those clusters whose digests differ from `bytes`.
   * @param first index of the first cluster
   * @param bytes of the whole clusters from that one on
   * @throws {DamageError} the digest file ends too early
   */
  differing(first: number, bytes: Buffer): Promise<number[]>;
}

/** A chain whose digests are asked. The caller closes it. */
export class KnownChain implements AsyncDisposable {
  readonly #layers: readonly (DigestLayer | Layer)[];

  private constructor(layers: readonly (DigestLayer | Layer)[]) {
    this.#layers = layers;
  }

  /**
   * Opens the digest files of a chain. Of a layer without digests, the image's tables say what it hides.
   * @param links top first
   * @throws {DamageError} a file is missing, or doesn't match its manifest
   */
  static async open(repository: Repository, domain: string, links: readonly Link[]): Promise<KnownChain> {
    const layers: (DigestLayer | Layer)[] = [];
    try {
      for (const { point, disk } of links) {
        const folder = await repository.openPoint(domain, point.id);
        const open = disk.digests ? DigestLayer.open : Layer.open;
        layers.push(await open(folder, point.id, disk));
      }
      return new KnownChain(layers);
    } catch (error) {
      await closeAll(...layers);
      throw error;
    }
  }

  /** Bytes of the largest cluster of a layer. */
  get largestCluster(): number {
    return Math.max(...this.#layers.map(({ geometry }) => geometry.clusterSize));
  }

  /** Whether any layer has digests. */
  get hasDigests(): boolean {
    return this.#layers.some((layer) => layer instanceof DigestLayer);
  }

  /**
   * What is known of the disk's first `size` bytes, in guest order, but for the zeroes inside a cluster with
   * a digest, which may come before it.
   *
   * Not known are clusters of layers without digests, and what a cluster still shows where a layer above
   * hides a part of it: its digest covers all of it.
   *
   *     top      |        |  zz    |dddddddd|
   *     below    |dddddddd|dddddddd|dddddddd|
   *     known     digest     (zz)   digest
   *
   * @throws {DamageError} a digest file is malformed. Only {@link assertIntact} compares its SHA-256.
   */
  async *runs(size: number): AsyncGenerator<KnownRun> {
    const partial = new SeenParts<LayerRun>();
    const damageOf = (layer: DigestLayer | Layer): OnDamage => failOnDamage(layer);
    for await (const extent of seenThrough<DigestLayer | Layer>(this.#layers, size, damageOf)) {
      const { offset, length, from } = extent;
      if (extent.state === "zero") yield { kind: "zero", offset, length };
      if (extent.state !== "data" || from === undefined) continue;
      const { layer, run } = from;
      if (!(layer instanceof DigestLayer)) continue;
      if (run.kind === "data") {
        const known = wholeClusters(layer, run, offset, offset + length);
        if (known) yield known;
      } else if (run.kind === "partial") {
        const { clusterSize } = layer.geometry;
        const start = run.cluster * clusterSize;
        const seen = partial.add(run, { offset, length, end: start + clusterSize });
        if (seen < dataBytesOf(run, layer.geometry)) continue;
        const known = wholeClusters(layer, run, start, Number.POSITIVE_INFINITY);
        if (known && start + known.length <= size) yield known;
      }
    }
  }

  /**
   * Compares the digest files with the manifests.
   * @throws {DamageError} one has another SHA-256
   */
  async assertIntact(): Promise<void> {
    for (const layer of this.#layers) if (layer instanceof DigestLayer) await layer.assertIntact();
  }

  async close(): Promise<void> {
    await closeAll(...this.#layers);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** A layer that is known by its digest file alone. */
class DigestLayer {
  readonly pointId: string;
  readonly disk: DiskManifest;
  readonly geometry: Geometry;
  readonly #folder: StoredFolder;
  readonly #file: DigestFileReader;

  private constructor(folder: StoredFolder, pointId: string, disk: DiskManifest, file: DigestFileReader) {
    this.#folder = folder;
    this.pointId = pointId;
    this.disk = disk;
    this.geometry = { virtualSize: disk.virtualSize, clusterSize: disk.clusterSize };
    this.#file = file;
  }

  /** @param folder the point's folder; belongs to the layer from here on, even if this fails */
  static async open(folder: StoredFolder, pointId: string, disk: DiskManifest): Promise<DigestLayer> {
    let file: DigestFileReader | undefined;
    try {
      file = await DigestFileReader.open(await plainFile(folder, disk.digests?.file ?? "", pointId, disk));
      checkDigestHeader(file.header, pointId, disk);
      return new DigestLayer(folder, pointId, disk, file);
    } catch (error) {
      await file?.close();
      await folder.close();
      throw error;
    }
  }

  get complete(): boolean {
    return this.disk.mode === "full";
  }

  /** Nobody reads the image, so a run needs no place in it. */
  async *runBlocks(): AsyncGenerator<readonly LayerRun[]> {
    for await (const block of this.#file.headBlocks()) {
      yield block.map((run) =>
        run.kind === "zero" ? { ...run, digests: undefined } : { ...run, hostOffset: 0, digests: undefined },
      );
    }
  }

  get algorithm(): DigestAlgorithm {
    return this.#file.header.algorithm;
  }

  async digester(): ReturnType<typeof createDigester> {
    return await createDigester(this.algorithm);
  }

  digestsAt(position: number, count: number): Promise<Buffer> {
    return this.#file.digestsAt(position, count);
  }

  async assertIntact(): Promise<void> {
    const { digests } = this.disk;
    if (!digests || (await sha256Of(this.#folder.at(digests.file))) === digests.sha256) return;
    throw damage(
      this.pointId,
      this.disk,
      "the SHA-256 of its digest file differs from the one in the manifest",
    );
  }

  async close(): Promise<void> {
    await this.#file.close();
    await this.#folder.close();
  }
}

/** The clusters of a run that lie in a stretch of the disk as a whole; undefined if none does. */
function wholeClusters(
  layer: DigestLayer,
  run: Exclude<LayerRun, { kind: "zero" }>,
  start: number,
  end: number,
): KnownClusters | undefined {
  const { clusterSize, virtualSize } = layer.geometry;
  const from = Math.max(run.cluster, Math.ceil(start / clusterSize));
  const to = Math.min(
    run.cluster + run.count,
    end >= virtualSize ? Number.POSITIVE_INFINITY : Math.floor(end / clusterSize),
  );
  if (from >= to || run.digestsAt === undefined) return undefined;
  return new WholeClusters(layer, run, from, to);
}

/** Clusters of one run of a layer. */
class WholeClusters implements KnownClusters {
  readonly kind = "digests";
  readonly offset: number;
  readonly length: number;
  readonly clusterSize: number;
  readonly count: number;
  readonly #layer: DigestLayer;
  readonly #run: Exclude<LayerRun, { kind: "zero" }>;
  /** The first cluster. */
  readonly #from: number;

  constructor(layer: DigestLayer, run: Exclude<LayerRun, { kind: "zero" }>, from: number, to: number) {
    const { clusterSize, virtualSize } = layer.geometry;
    this.offset = from * clusterSize;
    this.length = Math.min(to * clusterSize, virtualSize) - this.offset;
    this.clusterSize = clusterSize;
    this.count = to - from;
    this.#layer = layer;
    this.#run = run;
    this.#from = from;
  }

  get algorithm(): DigestAlgorithm {
    return this.#layer.algorithm;
  }

  get dataMask(): number | undefined {
    return this.#run.kind === "partial" ? this.#run.dataMask : undefined;
  }

  async digests(first: number, count: number): Promise<Buffer> {
    const { bytes: size } = DIGEST_ALGORITHMS[this.algorithm];
    const { digestsAt = 0, cluster } = this.#run;
    return await this.#layer.digestsAt(digestsAt + (this.#from + first - cluster) * size, count);
  }

  async differing(first: number, bytes: Buffer): Promise<number[]> {
    const digester = await this.#layer.digester();
    const { geometry } = this.#layer;
    const count = Math.ceil(bytes.length / geometry.clusterSize);
    const cluster = this.#from + first;
    const expected = await this.digests(first, count);
    const { dataMask } = this;
    const masked = dataMask === undefined ? {} : { dataMask };
    const found = digestClusters(
      digester,
      { kind: this.#run.kind, cluster, count, ...masked },
      bytes,
      geometry,
    );
    return Array.from({ length: count }, (_, i) => i)
      .filter((i) => {
        const [begin, stop] = [i * digester.size, (i + 1) * digester.size];
        return found.compare(expected, begin, stop, begin, stop) !== 0;
      })
      .map((i) => first + i);
  }
}
