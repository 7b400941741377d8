import { type Damage, isUnreadable, type OnDamage } from "../base/damage.js";
import { DamageError } from "../base/errors.js";
import { closeAll } from "../base/in-parallel.js";
import { clustersIn, type Geometry } from "../image/image.js";
import type { DiskManifest, Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";
import type { LayerRun } from "./agreed-runs.js";
import { findParentLink, type Link } from "./chain.js";
import { Layer } from "./layer.js";
import type { ReadableLayer } from "./overlay.js";

/** A part of the disk of which nobody can tell what it was. Offset and length are bytes. */
export interface LostExtent {
  readonly offset: number;
  readonly length: number;
  /** The point that is damaged there. */
  readonly point: string;
  readonly message: string;
}

type OnLost = (extent: LostExtent) => void;

/** The place of a run of which nothing can be read. No file has it. */
const NOWHERE = -1;

/**
 * The layers of a damaged chain, which give what is provable and zeroes for the rest. Where a layer is
 * missing, or can't be proven as a whole, all that it may have changed is lost, whatever lies below.
 */
export class SalvagedChain implements AsyncDisposable {
  /** Top first. The last one covers the whole disk. */
  readonly layers: readonly ReadableLayer[];
  readonly geometry: Geometry;
  /** The points that the bytes come from, newest first. */
  readonly chain: readonly string[];
  readonly #opened: readonly Layer[];

  private constructor(layers: readonly ReadableLayer[], geometry: Geometry, opened: readonly Layer[]) {
    this.layers = layers;
    this.geometry = geometry;
    this.chain = opened.map(({ pointId }) => pointId);
    this.#opened = opened;
  }

  /**
   * Opens what can be opened.
   * @param onLost called for each part that is lost, when it is read
   * @throws the file system's error; the signal's reason
   */
  static async open(
    repository: Repository,
    domain: string,
    point: Manifest,
    disk: DiskManifest,
    { onLost, signal }: { readonly onLost: OnLost; readonly signal?: AbortSignal | undefined },
  ): Promise<SalvagedChain> {
    const geometry = { virtualSize: disk.virtualSize, clusterSize: disk.clusterSize };
    const opened: Layer[] = [];
    const layers: ReadableLayer[] = [];
    try {
      for (let link: Link = { point, disk }; ; ) {
        const layer = await openWhole(repository, domain, link, signal);
        if (!(layer instanceof Layer)) {
          layers.push(lostBelow(geometry, link.point.id, layer, onLost));
          break;
        }
        opened.push(layer);
        layers.push(salvaged(layer, onLost));
        if (link.disk.parent === null) break;
        const parent = await nextLink(repository, domain, link);
        if (typeof parent === "string") {
          layers.push(lostBelow(geometry, link.disk.parent, parent, onLost));
          break;
        }
        link = parent;
      }
      return new SalvagedChain(layers, geometry, opened);
    } catch (error) {
      await closeAll(...opened).catch(() => undefined);
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await closeAll(...this.#opened);
  }
}

async function nextLink(repository: Repository, domain: string, link: Link): Promise<Link | string> {
  try {
    return await findParentLink(repository, domain, link);
  } catch (error) {
    if (error instanceof DamageError) return error.message;
    throw error;
  }
}

/** The layer, or why it can't be proven as a whole. */
async function openWhole(
  repository: Repository,
  domain: string,
  { point, disk }: Link,
  signal: AbortSignal | undefined,
): Promise<Layer | string> {
  let layer: Layer | undefined;
  try {
    const folder = await repository.openPoint(domain, point.id);
    layer = await Layer.open(folder, point.id, disk, { signal });
    let whole: Damage | undefined;
    // The SHA-256 of the digest file is compared at its end.
    for await (const _ of layer.runs((damage) => {
      if (damage.guestOffset === undefined || damage.length === undefined) whole ??= damage;
    })) {
      signal?.throwIfAborted();
    }
    if (whole === undefined) return layer;
    await layer.close();
    return whole.message;
  } catch (error) {
    await layer?.close().catch(() => undefined);
    if (error instanceof DamageError || isUnreadable(error)) return error.message;
    throw error;
  }
}

/** A layer in place of all that can't be proven from here down. */
function lostBelow(geometry: Geometry, point: string, message: string, onLost: OnLost): ReadableLayer {
  return {
    geometry,
    complete: true,
    async *runs(): AsyncGenerator<LayerRun> {
      const count = clustersIn(geometry);
      if (count > 0) yield { kind: "data", cluster: 0, count, hostOffset: NOWHERE, digests: undefined };
    },
    async read(_run: LayerRun, offset: number, target: Buffer): Promise<void> {
      target.fill(0);
      onLost({ offset, length: target.length, point, message });
    },
  };
}

/** A layer of which damaged clusters read as zeroes. They are never shown through to what lies below. */
function salvaged(layer: Layer, onLost: OnLost): ReadableLayer {
  const { geometry, complete, pointId: point } = layer;
  const { clusterSize } = geometry;
  return {
    geometry,
    complete,
    async *runs(): AsyncGenerator<LayerRun> {
      const lost: Damage[] = [];
      const ofLost = function* (): Generator<LayerRun> {
        // Entries that are damaged are found some way ahead of clusters that are missing.
        const inOrder = lost.splice(0).toSorted((a, b) => (a.guestOffset ?? 0) - (b.guestOffset ?? 0));
        for (const { guestOffset = 0, length = 0 } of inOrder) {
          const cluster = Math.floor(guestOffset / clusterSize);
          const count = Math.ceil((guestOffset + length) / clusterSize) - cluster;
          yield { kind: "data", cluster, count, hostOffset: NOWHERE, digests: undefined };
        }
      };
      for await (const run of layer.runs((damage) => lost.push(damage))) {
        yield* ofLost();
        yield run;
      }
      yield* ofLost();
    },
    async read(run: LayerRun, offset: number, target: Buffer): Promise<void> {
      const lose: OnDamage = ({ message, guestOffset = offset, length = target.length }) => {
        const from = Math.max(guestOffset, offset);
        const to = Math.min(guestOffset + length, offset + target.length);
        if (from >= to) return;
        target.fill(0, from - offset, to - offset);
        onLost({ offset: from, length: to - from, point, message });
      };
      if (run.kind !== "zero" && run.hostOffset === NOWHERE) {
        lose({ message: "the image and its digests don't agree on what is there" });
        return;
      }
      const damages: Damage[] = [];
      await layer.read(run, offset, target, (damage) => damages.push(damage));
      for (const damage of damages) lose(damage);
    },
  };
}
