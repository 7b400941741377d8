import { DamageError } from "../base/errors.js";
import { closeAll } from "../base/in-parallel.js";
import { Layer } from "../chain/layer.js";
import type { ClusterRun } from "../image/image.js";
import { diskOf } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";

/**
 * Something that may still have the right content of a damaged cluster. What it gives is compared with the
 * digest.
 */
export interface ClusterSource {
  /** For the report, such as `point 20261120T113205.123Z`. */
  readonly name: string;
  /**
   * Fills `target` with what the source has at a guest offset.
   * @returns false if it has nothing there, or can't read it
   */
  read(guestOffset: number, target: Buffer): Promise<boolean>;
}

/** Zeroes: an unwritten block of a file system below reads as such, and some were right. */
export const ZERO_SOURCE: ClusterSource = {
  name: "zeroes",
  read: async (_, target) => {
    target.fill(0);
    return true;
  },
};

/**
 * What another point of the domain stores itself at the same places of the disk. Opened at its first read.
 */
export class SiblingPoint implements ClusterSource, AsyncDisposable {
  readonly name: string;
  readonly #open: () => Promise<Layer | undefined>;
  #layer: Promise<Layer | undefined> | undefined;
  #runs: Promise<readonly ClusterRun[]> | undefined;

  constructor(repository: Repository, domain: string, id: string, disk: string) {
    this.name = `point ${id}`;
    this.#open = async () => {
      try {
        const manifest = diskOf(await repository.point(domain, id), disk);
        if (!manifest) return undefined;
        return await Layer.open(await repository.openPoint(domain, id), id, manifest);
      } catch (error) {
        if (error instanceof DamageError) return undefined;
        throw error;
      }
    };
  }

  async read(guestOffset: number, target: Buffer): Promise<boolean> {
    this.#layer ??= this.#open();
    const layer = await this.#layer;
    if (!layer) return false;
    this.#runs ??= runsOf(layer);
    const { clusterSize } = layer.geometry;
    const end = guestOffset + target.length;
    const run = (await this.#runs).find(
      ({ cluster, count }) => cluster * clusterSize <= guestOffset && (cluster + count) * clusterSize >= end,
    );
    if (run?.kind !== "data") return false;
    let isWhole = true;
    await layer.read({ ...run, digests: undefined }, guestOffset, target, () => {
      isWhole = false;
    });
    return isWhole;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const layer = await this.#layer?.catch(() => undefined);
    if (layer) await closeAll(layer);
  }
}

/** The data runs that a layer defines, as far as its tables can be read. */
async function runsOf(layer: Layer): Promise<readonly ClusterRun[]> {
  const runs: ClusterRun[] = [];
  try {
    for await (const run of layer.runs(() => undefined)) {
      if (run.kind === "data")
        runs.push({ kind: "data", cluster: run.cluster, count: run.count, hostOffset: run.hostOffset });
    }
  } catch (error) {
    // What was read until then is compared with digests like the rest.
    if (!(error instanceof DamageError)) throw error;
  }
  return runs;
}
