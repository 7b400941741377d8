/** A stretch of a file, in bytes. */
export interface Block {
  readonly at: number;
  readonly length: number;
}

interface ReadBlock<B extends Block> {
  readonly block: B;
  /** All bytes of the block. They are valid until the next one is asked for. */
  readonly bytes: Buffer;
}

/**
 * Reads blocks and hands them out in their order, while the next ones are under way: a store far away takes
 * as long to answer as to send a block. When it ends, for whatever reason, nothing is being read any more.
 *
 * @param atOnce how many blocks are read or handed out at a time, each with a buffer of its own
 * @param read fills all of `target`
 * @param unwanted is aborted when nobody waits any more for reads that are under way: they must end then
 * @throws what `read` throws, after the blocks before
 */
export async function* blocksAhead<B extends Block>(
  blocks: Iterable<B>,
  atOnce: number,
  read: (target: Buffer, block: B) => Promise<void>,
  unwanted: AbortController,
): AsyncGenerator<ReadBlock<B>> {
  const rest = blocks[Symbol.iterator]();
  const spare: Buffer[] = [];
  const underWay: { readonly block: B; readonly buffer: Buffer; readonly done: Promise<void> }[] = [];
  const begin = (): void => {
    const next = rest.next();
    if (next.done) return;
    const block = next.value;
    const used = spare.pop();
    const buffer = used && used.length >= block.length ? used : Buffer.allocUnsafeSlow(block.length);
    const done = read(buffer.subarray(0, block.length), block);
    // It is looked at when its turn comes, if at all.
    done.catch(() => undefined);
    underWay.push({ block, buffer, done });
  };
  try {
    for (let count = 0; count < atOnce; count += 1) begin();
    for (let first = underWay.shift(); first; first = underWay.shift()) {
      await first.done;
      yield { block: first.block, bytes: first.buffer.subarray(0, first.block.length) };
      spare.push(first.buffer);
      begin();
    }
  } finally {
    if (underWay.length > 0) unwanted.abort();
    await Promise.allSettled(underWay.map(({ done }) => done));
  }
}
