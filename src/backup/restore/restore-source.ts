import { closeAll } from "../base/in-parallel.js";
import { Progress } from "../base/progress.js";
import { type Assurance, assuranceOf } from "../chain/assurance.js";
import { findChain, openChain } from "../chain/chain.js";
import { ChainSource } from "../chain/chain-source.js";
import { failOnDamage, type Layer } from "../chain/layer.js";
import type { Geometry } from "../image/image.js";
import { plan } from "../pull/plan.js";
import type { PullOptions } from "../pull/pull.js";
import { endOf, type PullProgress } from "../pull/pull-image.js";
import type { RateLimit } from "../pull/rate-limit.js";
import { RequestWindow, requestBytesOf, type Window } from "../pull/window.js";
import type { Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";
import { FetchedSource } from "./fetched-source.js";

/** The disk to be read, and how. */
export interface RestoreSourceOptions {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  readonly point: Manifest;
  /** The disk's name in the domain. */
  readonly disk: string;
  readonly window?: Window | undefined;
  /** Preferred size of the target's writes, in bytes. */
  readonly preferredBlock?: number | undefined;
  readonly rateLimit?: RateLimit | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: PullProgress) => void) | undefined;
}

/** Everything that a pull needs, except its destination. */
type SourcePull = Omit<PullOptions<never>, "into">;

/** The same for a copy of image files of this machine: the chain tells where its bytes are stored. */
interface ChainPull extends SourcePull {
  readonly source: ChainSource;
}

const RESTORED_CLUSTER_SIZE = 64 * 1024;

/** A disk of a point, opened to be read once from front to back. */
export class RestoreSource implements AsyncDisposable {
  /** The disk's size, and the cluster size of the segments and of a new image. */
  readonly geometry: Geometry;
  /** Most bytes of clusters that a segment stores. */
  readonly segmentBytes: number;
  readonly #options: RestoreSourceOptions;
  readonly #layers: readonly Layer[];
  readonly #source: ChainSource;
  /** Undefined: the images are files of this machine. */
  readonly #fetched: FetchedSource | undefined;
  readonly #progress: Progress<PullProgress>;
  #readBytes = 0;
  #position = 0;

  private constructor(options: RestoreSourceOptions, layers: readonly Layer[]) {
    const virtualSize = layers[0]?.disk.virtualSize ?? 0;
    this.geometry = { virtualSize, clusterSize: RESTORED_CLUSTER_SIZE };
    this.segmentBytes = requestBytesOf(options.window ?? {}, RESTORED_CLUSTER_SIZE, options.preferredBlock);
    this.#options = options;
    this.#layers = layers;
    this.#progress = new Progress(options.onProgress);
    this.#source = new ChainSource(layers, this.geometry, failOnDamage);
    this.#fetched = options.repository.isInStore
      ? new FetchedSource(this.#source, layers, { segmentBytes: this.segmentBytes })
      : undefined;
  }

  /**
   * Opens all layers of the disk's chain.
   * @throws {DamageError} a layer is missing or does not fit its manifest
   */
  static async open(options: RestoreSourceOptions): Promise<RestoreSource> {
    const { repository, domain, point, disk, signal } = options;
    const links = await findChain(repository, domain, point, disk);
    return new RestoreSource(options, await openChain(repository, domain, links, { signal }));
  }

  /**
   * The options for a pull of the whole disk, without its destination. Call it, or `beginCopy`, only once.
   */
  begin(): SourcePull {
    return { ...this.beginCopy(), source: this.#fetched ?? this.#source };
  }

  /** The options for a copy of the whole disk from image files of this machine. */
  beginCopy(): ChainPull {
    const { geometry, segmentBytes } = this;
    const { window = {}, rateLimit, signal } = this.#options;
    return {
      source: this.#source,
      segments: plan(this.#source.extents(), { geometry, segmentBytes }),
      window: new RequestWindow(window, segmentBytes),
      requestSizes: { readThrough: 0, mostRead: segmentBytes },
      rateLimit,
      signal,
      onSegment: ({ readBytes, segment }) => {
        this.#readBytes += readBytes;
        this.#position = Math.max(this.#position, endOf(segment.runs, geometry));
        this.#progress.note({
          virtualSize: geometry.virtualSize,
          position: this.#position,
          readBytes: this.#readBytes,
        });
      },
    };
  }

  /**
   * Reports the final progress. Call it when the pull or the copy has ended.
   * @throws {RangeError} some data of the chain was never read
   */
  finish(): void {
    this.#progress.finish();
    this.#source.assertAllRead();
  }

  /** Bytes of the chain that were read and compared with their digests so far. */
  get readBytes(): number {
    return this.#readBytes;
  }

  /** The points that the bytes come from, newest first. */
  get chain(): readonly string[] {
    return this.#layers.map((layer) => layer.pointId);
  }

  /** What the copy proves when it has ended without an error. */
  get assurance(): Assurance {
    return assuranceOf(this.#layers);
  }

  /** Paths of the image files that the bytes come from, newest first. */
  get files(): readonly string[] {
    return this.#layers.map(({ stored }) => stored.path);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#fetched?.[Symbol.asyncDispose]();
    await closeAll(...this.#layers);
  }
}
