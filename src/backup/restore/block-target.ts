/**
 * A target that exists and is written in place: a block device or an NBD export. Its content is unknown, so
 * zeroes must be written too.
 *
 * Any stretch inside it may be written, whatever its block size is. Two stretches that share a block must not
 * be in flight at the same time.
 */
export interface BlockTarget extends AsyncDisposable {
  /** As the user named it. */
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  /** Bytes from the start that can be written. Less than `size` if a server's last block is not whole. */
  readonly writable: number;
  /** Preferred size of writes, in bytes; undefined if the target states none. */
  readonly preferredBlock: number | undefined;
  /** True if the content was changed, or may have been. */
  readonly touched: boolean;
  /** Writes `data`, which must stay unchanged until the promise settles. */
  write(offset: number, data: Uint8Array, signal: AbortSignal): Promise<void>;
  /** Makes the stretch read as zeroes. */
  zero(offset: number, length: number, signal: AbortSignal): Promise<void>;
  /** Flushes what was written to stable storage. */
  flush(signal: AbortSignal | undefined): Promise<void>;
}

/** 1 MiB of zeroes to be written from; must not be changed. */
export const ZERO_BLOCK = Buffer.alloc(1024 * 1024);

/** Access to a target that can't zero a stretch by itself. */
interface PlainAccess {
  read(offset: number, target: Uint8Array): Promise<void>;
  write(offset: number, data: Uint8Array): Promise<void>;
}

/**
 * Zeroes a stretch of a target that can't do so by itself. Parts that already read as zeroes are not written,
 * so that a thinly provisioned target stays thin.
 * @throws what `access` throws; the signal's reason
 */
export async function zeroByHand(
  access: PlainAccess,
  offset: number,
  length: number,
  signal: AbortSignal,
): Promise<void> {
  const buffer = Buffer.allocUnsafe(Math.min(ZERO_BLOCK.length, length));
  const end = offset + length;
  for (let at = offset; at < end; ) {
    signal.throwIfAborted();
    const next = Math.min(at + ZERO_BLOCK.length - (at % ZERO_BLOCK.length), end);
    const found = buffer.subarray(0, next - at);
    await access.read(at, found);
    const zeroes = ZERO_BLOCK.subarray(0, found.length);
    if (!found.equals(zeroes)) await access.write(at, zeroes);
    at = next;
  }
}
