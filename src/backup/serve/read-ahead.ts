/**
 * Reads of one disk, of which those that follow each other are read before they are asked for. QEMU fills an image
 * with one read at a time, and between two of them it writes: meanwhile the next ones are read and proven.
 */

/** What is read: see `ChainView`. */
export interface ReadSource {
  readonly size: number;
  read(offset: number, length: number, signal?: AbortSignal): Promise<Buffer>;
  extents(offset: number, length: number): Iterable<{ readonly length: number; readonly state: string }>;
}

/** As much as QEMU's block pull reads at a time. */
const BLOCK_BYTES = 512 * 1024;
/** Blocks that are read before they are asked for. */
const BLOCKS_AHEAD = 8;
/** One that begins this close behind the last one's end follows it: what lies between may be zero, or be there already. */
const GAP_BYTES = 4 * BLOCK_BYTES;
/** Readers that are known at a time. A guest's own reads come between those of a pull. */
const STREAMS = 4;
/** Reads that follow each other before anything is read ahead. */
const ENOUGH = 3;

/** A reader that goes through the disk. */
class Stream {
  /** Where its last read ended. */
  end: number;
  reads = 1;
  /** By their numbers. What fails is read again when it is asked for. */
  readonly blocks = new Map<number, Promise<Buffer | undefined>>();

  constructor(end: number) {
    this.end = end;
  }
}

export class ReadAhead {
  readonly #source: ReadSource;
  /** The one that read last is the last. */
  #streams: Stream[] = [];

  constructor(source: ReadSource) {
    this.#source = source;
  }

  /** @throws as the source's `read` */
  async read(offset: number, length: number, signal?: AbortSignal): Promise<Buffer> {
    const stream = this.#follow(offset, length);
    if (stream.reads < ENOUGH) return await this.#source.read(offset, length, signal);
    this.#fetch(stream, offset, length);
    return (await this.#taken(stream, offset, length)) ?? (await this.#source.read(offset, length, signal));
  }

  #follow(offset: number, length: number): Stream {
    const end = offset + length;
    const found = this.#streams.find((each) => offset >= each.end && offset - each.end <= GAP_BYTES);
    const stream = found ?? new Stream(end);
    if (found) {
      found.end = end;
      found.reads += 1;
    }
    this.#streams = [...this.#streams.filter((each) => each !== stream), stream].slice(-STREAMS);
    return stream;
  }

  /** Begins to read the blocks of a read and those behind it, and forgets those before it. */
  #fetch(stream: Stream, offset: number, length: number): void {
    const first = Math.floor(offset / BLOCK_BYTES);
    const last = Math.floor((offset + length - 1) / BLOCK_BYTES);
    for (const number of stream.blocks.keys()) if (number < first) stream.blocks.delete(number);
    const stop = Math.min(last + BLOCKS_AHEAD, Math.ceil(this.#source.size / BLOCK_BYTES) - 1);
    // What is asked for alone is read as it is asked for.
    for (let number = last + 1; number <= stop; number += 1) {
      if (stream.blocks.has(number) || !this.#hasData(number)) continue;
      const { start, bytes } = this.#place(number);
      stream.blocks.set(
        number,
        this.#source.read(start, bytes).catch(() => undefined),
      );
    }
  }

  /** @returns what was read ahead; undefined if not all of it was */
  async #taken(stream: Stream, offset: number, length: number): Promise<Buffer | undefined> {
    const first = Math.floor(offset / BLOCK_BYTES);
    const last = Math.floor((offset + length - 1) / BLOCK_BYTES);
    const parts: Buffer[] = [];
    for (let number = first; number <= last; number += 1) {
      const block = await stream.blocks.get(number);
      if (!block) return undefined;
      const { start } = this.#place(number);
      parts.push(block.subarray(Math.max(0, offset - start), offset + length - start));
    }
    const [only, ...others] = parts;
    return others.length === 0 ? only : Buffer.concat(parts);
  }

  #place(number: number): { readonly start: number; readonly bytes: number } {
    const start = number * BLOCK_BYTES;
    return { start, bytes: Math.min(BLOCK_BYTES, this.#source.size - start) };
  }

  #hasData(number: number): boolean {
    const { start, bytes } = this.#place(number);
    for (const { state } of this.#source.extents(start, bytes)) if (state === "data") return true;
    return false;
  }
}
