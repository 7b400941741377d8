/**
 * Assembles the block status of a whole range. A reply may cover only a part of its request, or more than it,
 * or a different part for each context.
 *
 *     asked        |--------request 1-------|--------request 2-------|
 *     context A    |---------------------|       cursor A
 *     context B    |---------------|             cursor B
 *     batch        |---------------|             up to the lowest cursor
 *     asked next                   |--------|    the rest of request 1; what A already covers is skipped
 */

import { anySignal } from "./abort.js";
import { ProtocolError, quote } from "./errors.js";
import type { StatusReply } from "./exchange.js";
import { checkExtentCount, type MapClock, type MapLimits } from "./map-limits.js";
import type { Descriptors } from "./wire/descriptors.js";

/** `length` bytes (> 0) from `offset`; the context defines the meaning of the flags. */
export interface StatusExtent {
  readonly offset: number;
  readonly length: number;
  readonly flags: number;
}

/**
 * The extents of one context without an object for each. The first begins where its batch does; each of the
 * others begins where the previous one ends.
 */
export interface StatusRuns {
  /** Ends of the extents: offsets in the export, ascending. The last one is the end of the batch. */
  readonly ends: Float64Array;
  /** Flags of the extents, as many as ends. */
  readonly flags: Float64Array;
}

/** A stretch of the export; each context's extents cover exactly [offset, offset + length), in order. */
export interface StatusBatch {
  readonly offset: number;
  readonly length: number;
  /** Created on first access. */
  readonly contexts: ReadonlyMap<string, readonly StatusExtent[]>;
  /** The same extents in less memory and time, for callers that expect hundreds of thousands. */
  readonly runs: ReadonlyMap<string, StatusRuns>;
}

/** Makes one request. `signal` fires when the reply is no longer needed. */
export type AskStatus = (offset: number, length: number, signal: AbortSignal) => Promise<StatusReply>;

interface StatusRange {
  readonly offset: number;
  readonly length: number;
  /** The export's size. */
  readonly size: number;
  /** Requests are multiples of this, except at the end of the export. */
  readonly alignment: number;
  /** Longest range of one request, a multiple of `alignment`. */
  readonly maxRequest: number;
  readonly contexts: readonly string[];
  readonly mapLimits: MapLimits;
  readonly clock: MapClock;
}

/** Requests that run ahead of the reader: few until the first replies are known, then more. */
const FIRST_DEPTH = 2;
const DEPTH = 16;
/** Most extents of one context in a batch. */
const BATCH = 16_384;
/** Bytes of replies that may be queued. The larger replies are, the fewer requests run ahead. */
const REPLY_BUDGET = 16 * 1024 * 1024;
/**
 * Smallest length of a request, however little the replies cover. The first one is as short, so that its
 * extents can be read while the server still looks for the others.
 */
const MIN_REQUEST = 64 * 1024 * 1024;

/**
 * Yields consecutive batches that cover the range exactly. A limited number of requests run ahead of the
 * reader; if the reader stops early, they are aborted.
 */
export async function* blockStatus(
  range: StatusRange,
  ask: AskStatus,
  signal?: AbortSignal,
): AsyncGenerator<StatusBatch, void, void> {
  const leaving = new AbortController();
  const over = anySignal(signal, leaving.signal);
  try {
    yield* walk(range, (offset, length) => ask(offset, length, over));
  } finally {
    leaving.abort();
  }
}

type AskFor = (offset: number, length: number) => Promise<StatusReply>;

async function* walk(range: StatusRange, ask: AskFor): AsyncGenerator<StatusBatch, void, void> {
  const end = range.offset + range.length;
  const lookahead = new Lookahead(range, ask);
  let position = lookahead.start;
  const cursors = range.contexts.map((name) => new Cursor(name, position));
  while (position < lookahead.end) {
    const head = lookahead.take();
    const reply = await range.clock.wait(head.reply, position);
    for (const cursor of cursors) {
      cursor.take(head.offset, head.end, reply);
      checkExtentCount(cursor.extents, range.mapLimits, cursor.name, cursor.end);
    }
    const upTo = Math.min(...cursors.map((cursor) => cursor.end));
    lookahead.learn(reply, head, position, upTo);
    let from = Math.max(position, range.offset);
    if (from > position) for (const cursor of cursors) cursor.forget(from);
    const last = Math.min(upTo, end);
    position = upTo;
    while (from < last) {
      const to = Math.min(last, ...cursors.map((cursor) => cursor.reach(BATCH)));
      const runs = new Map(cursors.map((cursor) => [cursor.name, cursor.give(to)]));
      yield new Batch(from, to - from, runs);
      from = to;
    }
  }
}

interface Ask {
  readonly offset: number;
  readonly end: number;
  readonly reply: Promise<StatusReply>;
}

/** Requests in flight or answered, in order. Their number and length adapt to the replies. */
class Lookahead {
  readonly start: number;
  readonly end: number;
  readonly #range: StatusRange;
  readonly #ask: AskFor;
  readonly #queue: Ask[] = [];
  #next: number;
  #requestLength: number;
  #largestReply = 1;
  #depth = FIRST_DEPTH;

  constructor(range: StatusRange, ask: AskFor) {
    const { alignment, offset, length, size } = range;
    this.start = floorTo(offset, alignment);
    this.end = Math.min(floorTo(offset + length + alignment - 1, alignment), size);
    this.#range = range;
    this.#ask = ask;
    this.#next = this.start;
    this.#requestLength = range.maxRequest;
  }

  /** The first request, after sending more if there is room. */
  take(): Ask {
    const depth = Math.max(1, Math.min(this.#depth, Math.floor(REPLY_BUDGET / this.#largestReply)));
    while (this.#next < this.end && this.#queue.length < depth) {
      const length = this.#next === this.start ? MIN_REQUEST : this.#requestLength;
      const end = Math.min(this.#next + Math.min(length, this.#requestLength), this.end);
      this.#queue.push(this.#send(this.#next, end));
      this.#next = end;
    }
    return this.#queue.shift() ?? this.#send(this.#next, this.end);
  }

  /** Records the result of `ask`, which yielded status of all contexts from `position` to `upTo`. */
  learn(reply: StatusReply, ask: Ask, position: number, upTo: number): void {
    const { alignment, maxRequest } = this.#range;
    this.#largestReply = Math.max(this.#largestReply, bytesOf(reply));
    // The first reply is about a short request, and says little about the next ones.
    if (ask.offset !== this.start) this.#depth = Math.min(DEPTH, 2 * this.#depth);
    if (upTo >= ask.end) {
      this.#requestLength = Math.min(maxRequest, 2 * this.#requestLength);
      return;
    }
    // If a server's extents violate its block size, a reply from the start of a block may contain nothing
    // new.
    const rest = upTo > position ? floorTo(upTo, alignment) : upTo;
    this.#queue.unshift(this.#send(rest, ask.end));
    this.#requestLength = Math.max(MIN_REQUEST, floorTo(this.#requestLength / 2, alignment));
  }

  #send(offset: number, end: number): Ask {
    const reply = this.#ask(offset, end - offset);
    // Awaited later, or never if the reader stops: a failure before that must not count as unhandled.
    reply.catch(() => {});
    return { offset, end, reply };
  }
}

function floorTo(value: number, multiple: number): number {
  return value - (value % multiple);
}

/** Bytes of a reply if every context has as many extents as the one with the most. */
function bytesOf(reply: StatusReply): number {
  let most = 0;
  for (const descriptors of reply.values()) most = Math.max(most, descriptors.size);
  return most * reply.size;
}

class Batch implements StatusBatch {
  readonly offset: number;
  readonly length: number;
  readonly runs: ReadonlyMap<string, StatusRuns>;
  #contexts: ReadonlyMap<string, readonly StatusExtent[]> | undefined;

  constructor(offset: number, length: number, runs: ReadonlyMap<string, StatusRuns>) {
    this.offset = offset;
    this.length = length;
    this.runs = runs;
  }

  get contexts(): ReadonlyMap<string, readonly StatusExtent[]> {
    this.#contexts ??= new Map(Array.from(this.runs, ([name, runs]) => [name, extentsOf(runs, this.offset)]));
    return this.#contexts;
  }
}

function extentsOf({ ends, flags }: StatusRuns, start: number): StatusExtent[] {
  const extents: StatusExtent[] = [];
  let offset = start;
  for (let index = 0; index < ends.length; index++) {
    const end = ends[index] ?? offset;
    extents.push({ offset, length: end - offset, flags: flags[index] ?? 0 });
    offset = end;
  }
  return extents;
}

/** The extents of one context that are known but not yet delivered: no gaps up to `end`. */
class Cursor {
  readonly name: string;
  end: number;
  /** Extents so far, delivered ones included; a delivered one that grows may count twice. */
  extents = 0;
  /** Extents #first to #count - 1 are known; each begins where the previous one ends. */
  #ends = new Float64Array(0);
  #flags = new Float64Array(0);
  #first = 0;
  #count = 0;

  constructor(name: string, start: number) {
    this.name = name;
    this.end = start;
  }

  /** Adds the extents of the reply to [offset, end), as far as they are new. */
  take(offset: number, end: number, reply: StatusReply): void {
    const descriptors: Descriptors | undefined = reply.get(this.name);
    if (descriptors === undefined) {
      throw new ProtocolError(`the server sent a block status without context ${quote(this.name)}`);
    }
    this.#makeRoom(descriptors.count);
    const ends = this.#ends;
    const flags = this.#flags;
    let count = this.#count;
    let known = this.end;
    // An extent that was already delivered must not grow.
    let last = count > this.#first ? flags[count - 1] : undefined;
    for (let index = 0, at = offset; index < descriptors.count && at < end; index++) {
      at = Math.min(at + descriptors.lengthAt(index), end);
      if (at <= known) continue;
      known = at;
      const flag = descriptors.flagsAt(index);
      if (flag !== last) {
        flags[count] = flag;
        last = flag;
        count += 1;
        this.extents += 1;
      }
      ends[count - 1] = at;
    }
    this.#count = count;
    this.end = known;
  }

  /** End of the first `count` known extents. */
  reach(count: number): number {
    const index = this.#first + count - 1;
    return index < this.#count ? (this.#ends[index] ?? this.end) : this.end;
  }

  /** Delivers and removes the extents up to `to`, which must be known. */
  give(to: number): StatusRuns {
    const last = this.#holding(to - 1);
    const ends = this.#ends.slice(this.#first, last + 1);
    const flags = this.#flags.slice(this.#first, last + 1);
    ends[ends.length - 1] = to;
    this.forget(to);
    return { ends, flags };
  }

  /** Discards all extents before `to`. */
  forget(to: number): void {
    this.#first = this.#holding(to);
  }

  /** Index of the extent that contains `offset`, or one past the last if it isn't known. */
  #holding(offset: number): number {
    let low = this.#first;
    let high = this.#count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#ends[middle] ?? 0) > offset) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /** Makes room for that many more extents. */
  #makeRoom(more: number): void {
    const kept = this.#count - this.#first;
    const { length } = this.#ends;
    const room = length >= kept + more ? length : 2 * (kept + more);
    this.#ends = moved(this.#ends, this.#first, this.#count, room);
    this.#flags = moved(this.#flags, this.#first, this.#count, room);
    this.#first = 0;
    this.#count = kept;
  }
}

/**
 * Moves elements `from` to `to` to the beginning of an array of `room` elements; the same array if it has
 * that size.
 */
function moved(
  array: Float64Array<ArrayBuffer>,
  from: number,
  to: number,
  room: number,
): Float64Array<ArrayBuffer> {
  if (array.length === room) return from === 0 ? array : array.copyWithin(0, from, to);
  const roomy = new Float64Array(room);
  roomy.set(array.subarray(from, to));
  return roomy;
}
