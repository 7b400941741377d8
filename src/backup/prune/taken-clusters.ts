import { damage, type Layer } from "../chain/layer.js";
import type { HolderMark } from "../repository/domain-lock.js";
import type { TakenRun } from "./merge-service.js";
import type { Placed } from "./merge-target.js";
import type { MergeThreads } from "./merge-threads.js";
import type { Origin } from "./merge-walk.js";

/** Bytes of one question. A message to a thread and back costs as much as merging some clusters. */
const QUESTION_BYTES = 4 * 1024 * 1024;

interface TakenClustersOptions {
  readonly threads: MergeThreads;
  /** Path of the image that takes the clusters. */
  readonly target: string;
  /** Of the lock's holder. */
  readonly mark: HolderMark;
}

/**
 * Clusters that a merge takes over with the digests that they have. Threads compare them with these digests,
 * and write those that go into the image now.
 */
export class TakenClusters {
  readonly #options: TakenClustersOptions;
  #layers: Layer[] = [];
  #runs: TakenRun[] = [];
  #digests: Buffer[] = [];
  #bytes = 0;
  readonly #underWay = new Set<Promise<void>>();
  #failure: { readonly reason: unknown } | undefined;
  #isFinished = false;

  constructor(options: TakenClustersOptions) {
    this.#options = options;
  }

  /**
   * Takes whole clusters of a layer. Waits while there is enough to do.
   * @param digests what the digest file of the layer has for them
   * @param placed where they go in the image; together all of them
   * @throws {DamageError} clusters that were taken before differ from their digests, or can't be read
   * @throws {BackupError} clusters that were taken before can't be written, with the file system's code; the
   *   lock was lost; or a thread failed
   */
  async take({ layer, run }: Origin, digests: Buffer, placed: readonly Placed[]): Promise<void> {
    const { clusterSize } = layer.geometry;
    if (!this.#layers.includes(layer)) this.#layers.push(layer);
    const image = this.#layers.indexOf(layer);
    for (const each of placed) {
      const from = run.hostOffset + (each.cluster - run.cluster) * clusterSize;
      this.#runs.push({ ...each, image, from });
      this.#bytes += each.count * clusterSize;
    }
    this.#digests.push(digests);
    if (this.#bytes < QUESTION_BYTES) return;
    this.#ask();
    while (this.#underWay.size >= this.#options.threads.ahead) {
      await Promise.race(this.#underWay);
      this.#assertNone();
    }
  }

  /**
   * Waits until all clusters are compared and written, and flushed with `sync`. No thread uses the files
   * afterwards.
   * @throws as {@link take}
   */
  async finish({ sync }: { readonly sync: boolean }): Promise<void> {
    if (this.#runs.length > 0) this.#ask();
    await Promise.all(this.#underWay);
    this.#assertNone();
    await this.#options.threads.end({ sync });
    this.#isFinished = true;
  }

  /**
   * No thread uses the files afterwards. If not all clusters were taken over, this ends the threads. Call it
   * before the layers are closed: their paths may lead elsewhere afterwards.
   */
  async close(): Promise<void> {
    if (!this.#isFinished) await this.#options.threads.close();
  }

  #assertNone(): void {
    if (this.#failure) throw this.#failure.reason;
  }

  #ask(): void {
    const { threads, target, mark } = this.#options;
    const layers = this.#layers;
    const images = layers.map(({ stored }) => stored);
    // In new memory, because a transfer to a thread moves all the memory behind a view.
    const digests = new Uint8Array(this.#digests.reduce((sum, { length }) => sum + length, 0));
    let at = 0;
    for (const each of this.#digests) {
      digests.set(each, at);
      at += each.length;
    }
    const question = { images, runs: this.#runs, digests, target, mark };
    this.#layers = [];
    this.#runs = [];
    this.#digests = [];
    this.#bytes = 0;
    const done: Promise<void> = threads
      .ask(question)
      .then((found) => {
        if (!found) return;
        const { pointId, disk } = layers[found.image] as Layer;
        throw damage(pointId, disk, found.damage.message, found.damage.guestOffset);
      })
      .catch((reason: unknown) => {
        this.#failure ??= { reason };
      })
      .finally(() => this.#underWay.delete(done));
    this.#underWay.add(done);
  }
}
