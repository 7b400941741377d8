/**
 * The block status of a whole range from replies that cover a part of their request, or more than it, or a
 * different part for each context.
 *
 *     asked        |--------request 1-------|--------request 2-------|
 *     context A    |---------------------|       cursor A
 *     context B    |---------------|             cursor B
 *     batch        |---------------|             up to the lowest cursor
 *     asked next                   |--------|    the rest of request 1; what A knows already is skipped
 */

import { ProtocolError, quote } from "./errors.js";
import type { StatusReply } from "./exchange.js";
import type { Descriptors } from "./wire/descriptors.js";

/** `length` bytes (> 0) from `offset`; what the flags mean is the context's business. */
export interface StatusExtent {
  readonly offset: number;
  readonly length: number;
  readonly flags: number;
}

/** A stretch of the export; each context's extents cover exactly [offset, offset + length), in order. */
export interface StatusBatch {
  readonly offset: number;
  readonly length: number;
  readonly contexts: ReadonlyMap<string, readonly StatusExtent[]>;
}

/** Makes one request; `signal` fires when nobody wants the reply any more. */
export type AskStatus = (offset: number, length: number, signal: AbortSignal) => Promise<StatusReply>;

export interface StatusRange {
  readonly offset: number;
  readonly length: number;
  /** The export's size. */
  readonly size: number;
  /** Requests are multiples of it, except at the end of the export. */
  readonly alignment: number;
  /** Most that one request may ask about, a multiple of `alignment`. */
  readonly maxRequest: number;
  readonly contexts: readonly string[];
}

/** Requests ahead of the reader: a few as long as nothing is known of the replies, then more. */
const FIRST_DEPTH = 2;
const DEPTH = 16;
/** Most extents of one context in a batch. */
const BATCH = 16_384;
/** Bytes of replies that may lie waiting; the larger replies are, the fewer are asked for ahead. */
const REPLY_BUDGET = 16 * 1024 * 1024;
/** Requests don't shrink below this, however short the replies are. */
const MIN_REQUEST = 64 * 1024 * 1024;

/**
 * Consecutive batches that cover the range exactly. Requests run ahead of the reader, within bounds; those that are
 * under way when the reader leaves are aborted.
 */
export async function* blockStatus(
  range: StatusRange,
  ask: AskStatus,
  signal?: AbortSignal,
): AsyncGenerator<StatusBatch, void, void> {
  const leaving = new AbortController();
  const over = signal === undefined ? leaving.signal : AbortSignal.any([signal, leaving.signal]);
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
    const reply = await head.reply;
    for (const cursor of cursors) cursor.take(head.offset, head.end, reply);
    const upTo = Math.min(...cursors.map((cursor) => cursor.end));
    lookahead.learn(reply, head, position, upTo);
    let from = Math.max(position, range.offset);
    if (from > position) for (const cursor of cursors) cursor.give(position, from);
    const last = Math.min(upTo, end);
    position = upTo;
    while (from < last) {
      const to = Math.min(last, ...cursors.map((cursor) => cursor.reach(BATCH)));
      const contexts = new Map(cursors.map((cursor) => [cursor.name, cursor.give(from, to)]));
      yield { offset: from, length: to - from, contexts };
      from = to;
    }
  }
}

interface Ask {
  readonly offset: number;
  readonly end: number;
  readonly reply: Promise<StatusReply>;
}

/** Requests under way or answered, in order; as many and as large as suits the replies. */
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

  /** The first one, after more have been sent where there is room. */
  take(): Ask {
    const depth = Math.max(1, Math.min(this.#depth, Math.floor(REPLY_BUDGET / this.#largestReply)));
    while (this.#next < this.end && this.#queue.length < depth) {
      const end = Math.min(this.#next + this.#requestLength, this.end);
      this.#queue.push(this.#send(this.#next, end));
      this.#next = end;
    }
    return this.#queue.shift() ?? this.#send(this.#next, this.end);
  }

  /** What came of `ask`: it took what all contexts know from `position` to `upTo`. */
  learn(reply: StatusReply, ask: Ask, position: number, upTo: number): void {
    const { alignment, maxRequest } = this.#range;
    this.#largestReply = Math.max(this.#largestReply, bytesOf(reply));
    this.#depth = Math.min(DEPTH, 2 * this.#depth);
    if (upTo >= ask.end) {
      this.#requestLength = Math.min(maxRequest, 2 * this.#requestLength);
      return;
    }
    // A server whose extents don't keep to its block size may, from a block's start, tell nothing new.
    const rest = upTo > position ? floorTo(upTo, alignment) : upTo;
    this.#queue.unshift(this.#send(rest, ask.end));
    this.#requestLength = Math.max(MIN_REQUEST, floorTo(this.#requestLength / 2, alignment));
  }

  #send(offset: number, end: number): Ask {
    const reply = this.#ask(offset, end - offset);
    // Awaited later, or never if the reader leaves: a failure until then must not count as unhandled.
    reply.catch(() => {});
    return { offset, end, reply };
  }
}

function floorTo(value: number, multiple: number): number {
  return value - (value % multiple);
}

/** What a reply takes where all contexts have as much to say as the one that says most. */
function bytesOf(reply: StatusReply): number {
  let most = 0;
  for (const descriptors of reply.values()) most = Math.max(most, descriptors.size);
  return most * reply.size;
}

/** What is known of one context and not yet handed on: extents without gap up to `end`. */
class Cursor {
  readonly name: string;
  end: number;
  #extents: StatusExtent[] = [];

  constructor(name: string, start: number) {
    this.name = name;
    this.end = start;
  }

  /** Adds what the reply to [offset, end) says beyond what is known. */
  take(offset: number, end: number, reply: StatusReply): void {
    const descriptors: Descriptors | undefined = reply.get(this.name);
    if (descriptors === undefined) {
      throw new ProtocolError(`the server sent a block status without context ${quote(this.name)}`);
    }
    let at = offset;
    for (let index = 0; index < descriptors.count && at < end; index++) {
      const extentEnd = Math.min(at + descriptors.lengthAt(index), end);
      if (extentEnd > this.end) this.#append(extentEnd, descriptors.flagsAt(index));
      at = extentEnd;
    }
  }

  /** Up to where the first `count` extents go that are known. */
  reach(count: number): number {
    const last = this.#extents[count - 1];
    return last === undefined ? this.end : last.offset + last.length;
  }

  /** Hands over what is known of [from, to), and forgets all before `to`. */
  give(from: number, to: number): readonly StatusExtent[] {
    const given: StatusExtent[] = [];
    let index = 0;
    for (; index < this.#extents.length; index++) {
      const extent = this.#extents[index];
      if (extent === undefined || extent.offset >= to) break;
      const extentEnd = extent.offset + extent.length;
      const start = Math.max(extent.offset, from);
      const stop = Math.min(extentEnd, to);
      if (stop > start) given.push({ offset: start, length: stop - start, flags: extent.flags });
      if (extentEnd > to) break;
    }
    this.#extents = this.#extents.slice(index);
    return given;
  }

  /** Extends what is known to `end`; an equal neighbour grows instead. */
  #append(end: number, flags: number): void {
    const last = this.#extents.at(-1);
    if (last !== undefined && last.flags === flags) {
      this.#extents[this.#extents.length - 1] = { offset: last.offset, length: end - last.offset, flags };
    } else {
      this.#extents.push({ offset: this.end, length: end - this.end, flags });
    }
    this.end = end;
  }
}
