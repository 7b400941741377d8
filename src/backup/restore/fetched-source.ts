import { addAbortListener, setMaxListeners } from "node:events";
import pLimit from "p-limit";
import type { PieceSink, Stretch } from "../../nbd/index.js";
import { damageIn } from "../base/damage.js";
import { closeAll } from "../base/in-parallel.js";
import type { ChainSource } from "../chain/chain-source.js";
import { damage, failOnDamage, type Layer } from "../chain/layer.js";
import { type MergedRequest, mergedRequests, REQUEST_LIMITS } from "../chain/merged-requests.js";
import type { VisibleExtent } from "../chain/overlay.js";
import { clustersOf, type FetchedRange, fetchInto, storedRanges } from "../chain/stored-ranges.js";
import type { ByteSource } from "../export/open-export.js";
import type { ReadableFile } from "../image/readable-file.js";

/** Requests under way at the same time, for each disk. */
const REQUESTS_AT_ONCE = 16;

/** What is needed of a layer, and what the guest sees of that: from `offset` up to `end`. */
interface Part extends FetchedRange {
  readonly layer: Layer;
  readonly offset: number;
  readonly end: number;
}

interface FetchedSourceOptions {
  /** Most bytes that are asked for at the same time by one call of `readPieces`. */
  readonly segmentBytes: number;
}

/**
 * A chain in an object store as a source for a pull. Whoever reads a segment tells all that he needs of it,
 * so what lies side by side in an image is asked for by one request, however scattered the guest sees it. The
 * bytes of all requests of a segment lie in one slab of memory, which later segments use again. What has
 * arrived is compared with its digests, and passed on from there.
 *
 *     guest     |full |inc 1|full  |inc 2|inc 1|full   |       a segment
 *     requests  full: |-------------------------|   inc 1: |--------|   inc 2: |--|
 */
export class FetchedSource implements ByteSource, AsyncDisposable {
  readonly #chain: ChainSource;
  readonly #slabBytes: number;
  readonly #files = new Map<Layer, Promise<ReadableFile>>();
  readonly #limit = pLimit(REQUESTS_AT_ONCE);
  readonly #spare: Buffer[] = [];
  /** Ends all requests when the pull is given up, or one of them has failed. */
  readonly #stop = new AbortController();
  /** Why the first request failed. Those that it ended fail too. */
  #failure: { readonly reason: unknown } | undefined;

  /** @param chain is told what was read */
  constructor(chain: ChainSource, layers: readonly Layer[], { segmentBytes }: FetchedSourceOptions) {
    this.#chain = chain;
    const largest = Math.max(...layers.map(({ geometry }) => geometry.clusterSize));
    // A part of a cluster needs all of it. The rest is for gaps.
    this.#slabBytes = segmentBytes + Math.max(segmentBytes / 4, 2 * largest);
    // Each request listens.
    setMaxListeners(0, this.#stop.signal);
  }

  /**
   * As {@link ChainSource.readPieces}, in any order.
   * @throws {DamageError} data can't be read or differs from its digest; names disk, point and guest offset
   * @throws the store's error. After a failure, every call fails with the first one
   */
  async readPieces(
    stretches: readonly Stretch[],
    sink: PieceSink,
    { signal }: { readonly signal: AbortSignal },
  ): Promise<void> {
    using _ = addAbortListener(signal, () => this.#stop.abort(signal.reason));
    let round: Part[] = [];
    let bytes = 0;
    for (const stretch of stretches) {
      for (const piece of this.#piecesOf(stretch, sink)) {
        for await (const part of partsOf(piece)) {
          if (bytes + part.length > this.#slabBytes) {
            await this.#fetch(round, sink, signal);
            round = [];
            bytes = 0;
          }
          round.push(part);
          bytes += part.length;
        }
      }
    }
    await this.#fetch(round, sink, signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    const files = await Promise.allSettled(this.#files.values());
    await closeAll(...files.map((file) => (file.status === "fulfilled" ? file.value : undefined)));
  }

  /** The data of a stretch. What lies between is zero. */
  *#piecesOf({ offset, length }: Stretch, sink: PieceSink): Generator<VisibleExtent> {
    const end = offset + length;
    let done = offset;
    for (const piece of this.#chain.take(offset, end)) {
      if (piece.offset > done) sink.zeroes(done, piece.offset - done);
      yield piece;
      done = piece.offset + piece.length;
    }
    if (done < end) sink.zeroes(done, end - done);
  }

  /** Settles when nothing is being read any longer. */
  async #fetch(parts: readonly Part[], sink: PieceSink, signal: AbortSignal): Promise<void> {
    if (parts.length === 0) return;
    const slab = this.#spare.pop() ?? Buffer.allocUnsafeSlow(this.#slabBytes);
    let free = slab;
    const asked = [...this.#requestsFor(parts)].map(({ layer, request }) => {
      const target = free.subarray(0, request.length);
      free = free.subarray(request.length);
      return this.#limit(async () => {
        if (this.#failure) return;
        try {
          await this.#ask(layer, request, target);
          await pass(request, target, sink, signal);
        } catch (reason) {
          this.#failure ??= { reason };
          this.#stop.abort(reason);
        }
      });
    });
    await Promise.all(asked);
    this.#spare.push(slab);
    if (this.#failure) throw this.#failure.reason;
  }

  *#requestsFor(parts: readonly Part[]): Generator<{ layer: Layer; request: MergedRequest<Part> }> {
    let spare = this.#slabBytes - parts.reduce((sum, { length }) => sum + length, 0);
    for (const layer of new Set(parts.map((part) => part.layer))) {
      const needed = parts.filter((part) => part.layer === layer);
      const { requests, gapBytes } = mergedRequests(needed, { ...REQUEST_LIMITS, spare });
      spare -= gapBytes;
      for (const request of requests) yield { layer, request };
    }
  }

  async #ask(layer: Layer, { position, ranges }: MergedRequest<Part>, target: Buffer): Promise<void> {
    const { geometry } = layer;
    const fetched = this.#fileOf(layer).then((file) => fetchInto(target, file, position, geometry));
    await located(layer, (ranges[0]?.cluster ?? 0) * geometry.clusterSize, fetched);
  }

  #fileOf(layer: Layer): Promise<ReadableFile> {
    const known = this.#files.get(layer);
    if (known) return known;
    const { remote } = layer.stored;
    if (!remote) throw new RangeError(`${layer.stored.path} is a file of this machine`);
    const file = remote.open({ signal: this.#stop.signal, exact: true });
    this.#files.set(layer, file);
    return file;
  }
}

/** Compares what a request has brought with its digests, and passes on what the guest sees of it. */
async function pass(
  { position, ranges }: MergedRequest<Part>,
  bytes: Buffer,
  sink: PieceSink,
  signal: AbortSignal,
): Promise<void> {
  for (const { layer, offset, end, ...range } of ranges) {
    const at = range.position - position;
    const stored = bytes.subarray(at, at + range.length);
    const start = range.cluster * layer.geometry.clusterSize;
    // Most are not compressed, and nobody has to wait for those.
    const clusters = range.isCompressed
      ? await located(layer, start, clustersOf(layer, range, stored, layer.geometry))
      : stored;
    layer.prove(range.run, range.cluster, clusters, failOnDamage(layer));
    signal.throwIfAborted();
    sink.data(offset, clusters.subarray(offset - start, end - start));
  }
}

/** The parts of a piece, in guest order. */
async function* partsOf({ offset, length, from }: VisibleExtent): AsyncGenerator<Part> {
  if (from === undefined || from.run.kind === "zero") {
    throw new RangeError(`the data at byte ${offset} has no layer`);
  }
  const { layer, run } = from;
  const { clusterSize } = layer.geometry;
  const ranges = storedRanges(layer, run, { offset, length }, layer.geometry);
  for (;;) {
    const next = await located(layer, offset, ranges.next());
    if (next.done) return;
    const { cluster, count } = next.value;
    const seen = {
      offset: Math.max(offset, cluster * clusterSize),
      end: Math.min(offset + length, (cluster + count) * clusterSize),
    };
    yield { layer, ...seen, ...next.value };
  }
}

/** Waits for something that concerns a layer. Its damage names disk, point and guest offset then. */
async function located<T>(layer: Layer, guestOffset: number, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    const message = damageIn(error);
    throw message === undefined ? error : damage(layer.pointId, layer.disk, message, guestOffset);
  }
}
