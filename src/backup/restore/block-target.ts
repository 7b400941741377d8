/**
 * What is there already and is written in place: a block device, or an NBD export. What it holds is unknown, so
 * zeroes have to be written as well.
 *
 * Any stretch inside it may be read and written, whatever its blocks are. Two that share a block must not be under way at
 * the same time.
 */
export interface BlockTarget extends AsyncDisposable {
  /** As the user named it. */
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  /** Bytes from its beginning that can be written: fewer where a server states blocks and the last one is not whole. */
  readonly writable: number;
  /** Undefined where it stated none. */
  readonly preferredBlock: number | undefined;
  /** Something was changed, or may have been. */
  readonly touched: boolean;
  /** `data` stays unchanged until the promise settles. */
  write(offset: number, data: Uint8Array, signal: AbortSignal): Promise<void>;
  /** Makes the stretch read as zeroes. */
  zero(offset: number, length: number, signal: AbortSignal): Promise<void>;
  /** Brings what was written to stable storage. */
  flush(signal: AbortSignal | undefined): Promise<void>;
}

/** Zeroes that are written at a time. Never changed. */
export const ZERO_BLOCK = Buffer.alloc(1024 * 1024);

/** How bytes get to and fro where a target can't zero by itself. */
interface PlainAccess {
  read(offset: number, target: Uint8Array): Promise<void>;
  write(offset: number, data: Uint8Array): Promise<void>;
}

/**
 * Zeroes a stretch of a target that can't do so by itself: what reads as zero already is left alone, so that a thinly
 * provisioned target stays thin. Over the rest zeroes are written.
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
