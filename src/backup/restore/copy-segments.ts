import type { ChainSource } from "../chain/chain-source.js";
import { damage, type Layer } from "../chain/layer.js";
import type { VisibleExtent } from "../chain/overlay.js";
import { type ClusterRun, type ImageWriter, slotsOf } from "../image/image.js";
import { type LaneOptions, runLanes } from "../pull/lanes.js";
import type { RateLimit } from "../pull/rate-limit.js";
import { type ReadRange, readRangesOf, type Segment, slotAt, storedRuns } from "../pull/segment.js";
import type { CopiedPiece } from "./copy-service.js";
import type { CopyThreads } from "./copy-threads.js";

/** Bytes of one question. A message to a thread and back costs as much as copying some clusters. */
export const COPIED_AT_A_TIME = 4 * 1024 * 1024;

interface CopyOptions
  extends Pick<LaneOptions<readonly ClusterRun[]>, "segments" | "recorder" | "signal" | "onSegment"> {
  readonly source: ChainSource;
  readonly threads: CopyThreads;
  /** The writer of the image at `path`. It gives the host offsets; the threads write the data. */
  readonly writer: ImageWriter;
  readonly path: string;
  /** Most bytes of segments in flight; default: as many segments as keep the threads busy. */
  readonly inFlight?: number | undefined;
  /** Most bytes of clusters that a segment stores. */
  readonly segmentBytes: number;
  readonly rateLimit?: RateLimit | undefined;
}

/**
 * Does what `pull` does, for bytes in the image files of a chain. Each lane has a thread copy its segment.
 * The thread answers which clusters it stored, because they are not all zeroes.
 *
 * @throws {DamageError} data differs from its digest or can't be read. The message names disk, point and
 *   guest offset
 * @throws {BackupError} the target can't be written, with the file system's code; or a thread failed
 */
export async function copySegments(options: CopyOptions): Promise<void> {
  const { threads, writer, inFlight, segmentBytes, rateLimit } = options;
  const allowed = Math.max(1, Math.floor((inFlight ?? Number.POSITIVE_INFINITY) / segmentBytes));
  await runLanes<readonly ClusterRun[]>({
    ...options,
    lanes: () => Math.min(threads.ahead, allowed),
    store: async (segment, signal) => {
      const question = questionOf(segment, options);
      await rateLimit?.take(question.bytes, signal);
      const stored = await ask(question, options);
      return { outcome: storedRuns(segment, stored, writer), readBytes: question.bytes };
    },
  });
}

/** The question to a thread about a segment, with the layers of its pieces. */
interface SegmentQuestion {
  readonly layers: readonly Layer[];
  readonly pieces: readonly CopiedPiece[];
  readonly digests: Uint8Array<ArrayBuffer>;
  readonly slots: number;
  /** Length of the pieces together. */
  readonly bytes: number;
}

function questionOf(segment: Segment, { source, writer }: CopyOptions): SegmentQuestion {
  const layers: Layer[] = [];
  const pieces: CopiedPiece[] = [];
  const digests: Buffer[] = [];
  for (const range of readRangesOf(segment, writer.geometry)) {
    for (const piece of source.take(range.offset, range.end)) {
      const { layer, run, expected } = originOf(piece);
      if (!layers.includes(layer)) layers.push(layer);
      pieces.push({ image: layers.indexOf(layer), run, ...targetOf(piece, range, segment, writer) });
      digests.push(expected);
    }
  }
  const bytes = pieces.reduce((sum, { length }) => sum + length, 0);
  return { layers, pieces, digests: joined(digests), slots: segment.clusters, bytes };
}

/**
 * The clusters that a piece touches, and their expected digests.
 * @throws {RangeError} the piece has no data
 */
function originOf({ offset, length, from }: VisibleExtent): {
  layer: Layer;
  run: CopiedPiece["run"];
  expected: Buffer;
} {
  if (from === undefined || from.run.kind === "zero") {
    throw new RangeError(`the data at byte ${offset} has no layer`);
  }
  const { layer } = from;
  const { digests, digestsAt: _, ...run } = from.run;
  const { clusterSize } = layer.geometry;
  const first = Math.floor(offset / clusterSize);
  const count = Math.ceil((offset + length) / clusterSize) - first;
  const skipped = first - run.cluster;
  const size = layer.digestSize;
  const expected = digests?.subarray(skipped * size, (skipped + slotsOf({ ...run, count })) * size) ?? NONE;
  if (run.kind === "partial") return { layer, run, expected };
  return {
    layer,
    run: { kind: "data", cluster: first, count, hostOffset: run.hostOffset + skipped * clusterSize },
    expected,
  };
}

const NONE = Buffer.alloc(0);

/** Where a piece of a range goes in the target file. */
function targetOf(
  { offset, length }: VisibleExtent,
  range: ReadRange,
  { firstRank }: Segment,
  writer: ImageWriter,
): Pick<CopiedPiece, "offset" | "length" | "to" | "slot"> {
  const { clusterSize } = writer.geometry;
  const cluster = Math.floor(offset / clusterSize);
  const slot = slotAt(range, offset, clusterSize);
  const to = writer.hostOffset(cluster, firstRank + slot) + offset - cluster * clusterSize;
  return { offset, length, to, slot };
}

/** Joins buffers in new memory, because a transfer to a thread moves all the memory behind a view. */
function joined(parts: readonly Buffer[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** @returns one byte for each slot of the segment, 1 if something was stored there */
async function ask(question: SegmentQuestion, { threads, writer, path }: CopyOptions): Promise<Uint8Array> {
  const { layers, pieces, digests, slots } = question;
  if (pieces.length === 0) return new Uint8Array(slots);
  const { clusterSize } = writer.geometry;
  const images = layers.map(({ stored }) => stored);
  const answer = await threads.ask({ images, pieces, digests, target: { path, clusterSize, slots } });
  if ("stored" in answer) return answer.stored;
  const { pointId, disk } = layers[answer.image] as Layer;
  throw damage(pointId, disk, answer.damage.message, answer.damage.guestOffset);
}
