import assert from "node:assert/strict";
import type { NbdClient } from "../../nbd/index.js";
import { type BackupError, explained, messageOf } from "../base/errors.js";
import { Progress } from "../base/progress.js";
import { type PlanTotals, plan } from "../pull/plan.js";
import { pull } from "../pull/pull.js";
import { exportSource, type PullProgress } from "../pull/pull-image.js";
import type { RateLimit } from "../pull/rate-limit.js";
import { RequestWindow, requestBytesOf, type Window } from "../pull/window.js";
import { type ByteSink, OrderedWriter } from "./ordered-writer.js";

interface PullStreamOptions {
  /** Connected by `openExport`, without a bitmap. */
  readonly client: NbdClient;
  /** Gets every byte of the disk, in order. */
  readonly sink: ByteSink;
  /** The bytes in flight also limit the bytes that wait for the sink; default for those: 16 MiB. */
  readonly window?: Window | undefined;
  readonly rateLimit?: RateLimit | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: PullProgress) => void) | undefined;
}

/** Sizes in bytes. */
export interface PullStreamResult {
  readonly virtualSize: number;
  /** The part that was read; the rest are zeroes by the export's map. */
  readonly readBytes: number;
  /** Number of extents of data or zeroes. */
  readonly extents: number;
  /** Number of requests sent to the server. */
  readonly requests: number;
  readonly seconds: number;
}

/** Reading in units of this many bytes; a stream has no clusters. */
const UNIT = 64 * 1024;

/**
 * Copies a whole export into a stream as raw bytes, zeroes included. No more is read than the stream takes.
 *
 * @throws {NbdError} a read or a block status failed
 * @throws what the sink throws
 * @throws once the stream has got a byte: a {@link BackupError} of the same code, whose message says how much
 *   it has got at least
 */
export async function pullStream(options: PullStreamOptions): Promise<PullStreamResult> {
  const { client, sink, window = {}, rateLimit, signal } = options;
  const started = performance.now();
  const source = exportSource(client, undefined, undefined);
  const { virtualSize } = source;
  const geometry = { virtualSize, clusterSize: UNIT };
  const segmentBytes = requestBytesOf(window, UNIT, source.preferredBlock);
  const requestWindow = new RequestWindow(window, segmentBytes, source.fewestConnections);
  const totals: PlanTotals = { extents: 0, definedBytes: 0 };
  const requestsBefore = source.requests;
  const progress = new Progress(options.onProgress);
  let readBytes = 0;

  await using into = new OrderedWriter({
    sink,
    geometry,
    segmentBytes,
    bufferBytes: window.inFlight,
    signal,
  });
  const tell = (): void => progress.note({ virtualSize, position: into.writtenBytes, readBytes });
  const { extents, bytes } = source.begin(signal);
  try {
    await pull({
      source: bytes,
      into,
      segments: plan(extents, { geometry, segmentBytes }, totals),
      window: requestWindow,
      requestSizes: { readThrough: source.readThrough, mostRead: segmentBytes },
      rateLimit,
      widen: (connections) => source.widen(connections),
      signal,
      onSegment: (done) => {
        readBytes += done.readBytes;
        tell();
      },
    });
    assert.equal(into.writtenBytes, virtualSize, "the stream has not got the whole disk");
  } catch (error) {
    throw into.writtenBytes === 0 ? error : incomplete(error, into.writtenBytes, virtualSize);
  }
  tell();
  progress.finish();
  return {
    virtualSize,
    readBytes,
    extents: totals.extents,
    requests: source.requests - requestsBefore,
    seconds: (performance.now() - started) / 1000,
  };
}

/** The error, with what the stream has got in its message and details. */
function incomplete(error: unknown, writtenBytes: number, virtualSize: number): BackupError {
  const message = `${messageOf(error)}. The output is incomplete: it has got at least ${writtenBytes} of ${virtualSize} bytes`;
  return explained(error, message, { writtenBytes, virtualSize });
}
