import type { Layer } from "../chain/layer.js";
import { type DigestAlgorithm, isCryptographic } from "../digest/algorithms.js";
import { createDigester, type Digester, digestClusters } from "../digest/digest.js";
import { DigestFileWriter } from "../digest/digest-file-writer.js";
import { ALL_SUBCLUSTERS, type Geometry } from "../image/image.js";
import type { NewPlace } from "../image/new-file.js";
import type { MixedCluster } from "./merge-target.js";
import type { Origin } from "./merge-walk.js";

/** What a merged image is. */
interface MergedImage {
  readonly geometry: Geometry;
  /** True for a full copy, which has no layer below. */
  readonly complete: boolean;
}

/** The digest file of a merged image: digests that the layers have, and new ones where they have none. */
export class MergedDigests {
  readonly #digester: Digester;
  readonly #file: DigestFileWriter;
  readonly #geometry: Geometry;

  private constructor(digester: Digester, file: DigestFileWriter, geometry: Geometry) {
    this.#digester = digester;
    this.#file = file;
    this.#geometry = geometry;
  }

  /**
   * @returns undefined if {@link mergedAlgorithm} allows none
   * @throws the file system's error
   */
  static async create(
    place: NewPlace,
    layers: readonly Layer[],
    image: MergedImage,
  ): Promise<MergedDigests | undefined> {
    const algorithm = mergedAlgorithm(layers);
    if (!algorithm) return undefined;
    const digester = await createDigester(algorithm);
    return new MergedDigests(
      digester,
      await DigestFileWriter.create(place, { algorithm, ...image }),
      image.geometry,
    );
  }

  /** The layer's own digests of these clusters, if they are of the same algorithm and cluster size. */
  known(cluster: number, count: number, { layer, run }: Origin): Buffer | undefined {
    const { algorithm, size } = this.#digester;
    const same =
      run.kind === "data" &&
      run.digests !== undefined &&
      layer.disk.digests?.algorithm === algorithm &&
      layer.geometry.clusterSize === this.#geometry.clusterSize;
    if (!same || !run.digests) return undefined;
    const first = (cluster - run.cluster) * size;
    return Buffer.from(run.digests.subarray(first, first + count * size));
  }

  /** New digests of clusters with these bytes. */
  of(cluster: number, count: number, bytes: Buffer): Buffer {
    return digestClusters(this.#digester, { kind: "data", cluster, count }, bytes, this.#geometry);
  }

  add(cluster: number, count: number, digests: Buffer): void {
    this.#file.add({ kind: "data", cluster, count }, digests);
  }

  addZeroes(cluster: number, count: number): void {
    this.#file.add({ kind: "zero", cluster, count }, Buffer.alloc(0));
  }

  addMixed({ cluster, bytes, dataMask, zeroMask }: MixedCluster): void {
    if (dataMask === ALL_SUBCLUSTERS) {
      this.add(cluster, 1, this.of(cluster, 1, bytes));
      return;
    }
    const run = { kind: "partial" as const, cluster, count: 1 as const, dataMask, zeroMask };
    const digest =
      dataMask === 0 ? Buffer.alloc(0) : digestClusters(this.#digester, run, bytes, this.#geometry);
    this.#file.add(run, digest);
  }

  /**
   * Completes the file.
   * @returns its SHA-256
   * @throws the file system's error
   */
  async finish(options: { readonly sync: boolean }): Promise<string> {
    return (await this.#file.finish(options)).sha256;
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}

/**
 * The algorithm of the merged digests: the newest layer's, unless an older layer has checksums only.
 * Undefined if a layer has no digests. Digests promise no more than those against which the data was compared
 * when it was copied: a cryptographic digest of data that only a checksum vouches for would make a forgery a
 * proof.
 */
export function mergedAlgorithm(layers: readonly Layer[]): DigestAlgorithm | undefined {
  const known = layers.flatMap(({ disk }) => disk.digests?.algorithm ?? []);
  if (known.length < layers.length) return undefined;
  return known.find((algorithm) => !isCryptographic(algorithm)) ?? known[0];
}
