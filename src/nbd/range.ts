/**
 * Splits any stretch of an export into requests that respect its limits.
 *
 *     asked            |-------------------------------|
 *     blocks       |-------|-------|-------|-------|-------|
 *     requests     [bounce][ straight into the target  ][bounce]
 *
 * A bounce is a block of which only a part was requested. It is read into a separate buffer.
 */

import { RequestError } from "./errors.js";
import type { RevocableSink, Stretch } from "./exchange.js";
import type { BlockLimits } from "./export-info.js";

/** Reads one stretch by one request, into memory of the caller's. */
type ReadPiece = (offset: number, target: Uint8Array) => Promise<void>;

/** Pieces of one stretch that are in progress at a time: enough to keep two connections busy. */
const MAX_UNDER_WAY = 32;
/** The specification promises unfragmented reads up to this size. */
const SAFE_UNFRAGMENTED = 64 * 1024;

/** Whether one request can read the stretch straight into the target. */
export function fitsOneRequest(limits: BlockLimits, offset: number, length: number): boolean {
  const end = offset + length;
  return (
    length <= limits.maxPayload &&
    offset % limits.alignment === 0 &&
    (end % limits.alignment === 0 || end === limits.size)
  );
}

/**
 * Fills `target` from `offset`. Once the promise has settled, no request writes to `target`, even after a
 * failure.
 */
export async function readRange(
  limits: BlockLimits,
  offset: number,
  target: Uint8Array,
  readPiece: ReadPiece,
): Promise<void> {
  const { alignment, size } = limits;
  const end = offset + target.length;
  const bounces: Bounce[] = [];
  let from = offset;
  let to = end;
  if (offset % alignment !== 0) {
    const bounce = makeBounce(offset - (offset % alignment), limits);
    bounces.push(bounce);
    from = bounce.offset + bounce.buffer.length;
  }
  if (end % alignment !== 0 && end !== size && end > from) {
    to = end - (end % alignment);
    bounces.push(makeBounce(to, limits));
  }
  const step = limits.maxPayload;
  const middle = to > from ? Math.ceil((to - from) / step) : 0;
  await workThrough(bounces.length + middle, (index) => {
    const bounce = bounces[index];
    if (bounce !== undefined) return readPiece(bounce.offset, bounce.buffer);
    const at = from + (index - bounces.length) * step;
    return readPiece(at, target.subarray(at - offset, Math.min(at + step, to) - offset));
  });
  for (const bounce of bounces) {
    const start = Math.max(bounce.offset, offset);
    const stop = Math.min(bounce.offset + bounce.buffer.length, end);
    target.set(bounce.buffer.subarray(start - bounce.offset, stop - bounce.offset), start - offset);
  }
}

interface Bounce {
  readonly offset: number;
  readonly buffer: Uint8Array;
}

function makeBounce(offset: number, limits: BlockLimits): Bounce {
  return { offset, buffer: new Uint8Array(Math.min(limits.alignment, limits.size - offset)) };
}

/**
 * Passes the bytes of any stretch to `sink`. Bytes of the first and last block outside the stretch are left
 * out.
 */
export async function readRangePieces(
  limits: BlockLimits,
  offset: number,
  length: number,
  sink: RevocableSink,
  readPieces: (offset: number, length: number, sink: RevocableSink) => Promise<void>,
): Promise<void> {
  const { alignment, size, maxPayload } = limits;
  const end = offset + length;
  const from = offset - (offset % alignment);
  const to = Math.min(Math.ceil(end / alignment) * alignment, size);
  const wanted = from === offset && to === end ? sink : new Clipped(sink, offset, end);
  await inPieces(from, to - from, maxPayload, (at, count) => readPieces(at, count, wanted));
}

/** Passes on what lies within [start, end). */
class Clipped implements RevocableSink {
  readonly #sink: RevocableSink;
  readonly #start: number;
  readonly #end: number;

  constructor(sink: RevocableSink, start: number, end: number) {
    this.#sink = sink;
    this.#start = start;
    this.#end = end;
  }

  get isClosed(): boolean {
    return this.#sink.isClosed;
  }

  data(offset: number, bytes: Uint8Array): void {
    const start = Math.max(offset, this.#start);
    const end = Math.min(offset + bytes.length, this.#end);
    if (start < end) this.#sink.data(start, bytes.subarray(start - offset, end - offset));
  }

  zeroes(offset: number, length: number): void {
    const start = Math.max(offset, this.#start);
    const end = Math.min(offset + length, this.#end);
    if (start < end) this.#sink.zeroes(start, end - start);
  }
}

/** Reads one stretch by one request; whoever made it knows where the bytes go. */
type ReadStretch = (offset: number, length: number) => Promise<void>;

/** Reads by one request, or by several small ones if the server can't return that much unfragmented. */
export async function readWhole(
  limits: BlockLimits,
  offset: number,
  length: number,
  read: ReadStretch,
): Promise<void> {
  try {
    await read(offset, length);
  } catch (error) {
    if (!isOverflow(error) || length <= smallPiece(limits)) throw error;
    await readInSmallPieces(limits, offset, length, read);
  }
}

/** Reads by requests that are small enough for every server to answer unfragmented. */
export function readInSmallPieces(
  limits: BlockLimits,
  offset: number,
  length: number,
  read: ReadStretch,
): Promise<void> {
  return inPieces(offset, length, smallPiece(limits), read);
}

/** Repetitions ask for a part at a time, so that a line that is cut again and again lets some through. */
const PARTS_OF_REPEAT = 4;

/**
 * Reads by one request. If its connection is lost, all of it is asked for again, in smaller pieces: what had
 * arrived of an incomplete reply can't be relied upon, since an error chunk might have followed.
 *
 * @param mayRepeat whether the failure is a loss, and another attempt may be made after so many repetitions
 */
export async function readAgainIfLost(
  limits: BlockLimits,
  { offset, length }: Stretch,
  read: ReadStretch,
  mayRepeat: (error: unknown, spent: number) => boolean,
  spent = 0,
): Promise<void> {
  try {
    await read(offset, length);
  } catch (error) {
    if (!mayRepeat(error, spent)) throw error;
    await repeatRead(limits, { offset, length }, read, mayRepeat, spent + 1);
  }
}

/** Reads what a lost connection has left unanswered; see {@link readAgainIfLost}. */
export function repeatRead(
  limits: BlockLimits,
  { offset, length }: Stretch,
  read: ReadStretch,
  mayRepeat: (error: unknown, spent: number) => boolean,
  spent: number,
): Promise<void> {
  const part = length / PARTS_OF_REPEAT;
  const step = Math.max(smallPiece(limits), part - (part % limits.alignment));
  return inPieces(offset, length, step, (at, count) =>
    readAgainIfLost(limits, { offset: at, length: count }, read, mayRepeat, spent),
  );
}

function smallPiece(limits: BlockLimits): number {
  return Math.max(limits.alignment, SAFE_UNFRAGMENTED);
}

/** Whether a read failed because the server can't return that much unfragmented. */
export function isOverflow(error: unknown): boolean {
  return error instanceof RequestError && error.errno === "EOVERFLOW";
}

/**
 * Processes [offset, offset + length) in steps, several at a time. Settles when the last step has settled;
 * after a failure no more steps are started.
 */
export function inPieces(
  offset: number,
  length: number,
  step: number,
  work: (offset: number, length: number) => Promise<void>,
): Promise<void> {
  return workThrough(Math.ceil(length / step), (index) =>
    work(offset + index * step, Math.min(step, length - index * step)),
  );
}

/** Runs jobs 0 to `count` - 1. Rejects with the first failure, once no job uses the caller's buffer. */
async function workThrough(count: number, job: (index: number) => Promise<void>): Promise<void> {
  let next = 0;
  let failure: { readonly reason: unknown } | undefined;
  const worker = async () => {
    while (next < count && failure === undefined) {
      const index = next;
      next += 1;
      try {
        await job(index);
      } catch (reason) {
        failure ??= { reason };
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(count, MAX_UNDER_WAY) }, worker));
  rethrow(failure);
}

function rethrow(failure: { readonly reason: unknown } | undefined): void {
  if (failure !== undefined) throw failure.reason;
}
