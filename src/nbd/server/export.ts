/** What a server serves: the only interface that the owner of the data has to implement. */

/** `length` bytes (> 0) that have the same flags in one meta context. */
export interface StatusExtent {
  readonly length: number;
  readonly flags: number;
}

/**
 * Describes `length` bytes from `offset` on in one meta context, as adjacent extents from `offset`. The list
 * may end early (after at least one extent) or late: the server clips it, merges equal neighbours, and sends
 * only its beginning if it is long. A lazy iterable is therefore read only as far as one reply needs.
 */
export type DescribeExtents = (offset: number, length: number) => Iterable<StatusExtent>;

/** Bytes; powers of two except for `maximum`, which limits the payload of one request. */
export interface BlockSize {
  readonly minimum: number;
  readonly preferred: number;
  readonly maximum: number;
}

/** A read-only disk. Many clients read it at once, so it must not change while it is served. */
export interface ServedExport {
  /** Size in bytes; a safe integer. */
  readonly size: number;
  /** Text for humans, in export lists. */
  readonly description?: string;
  /**
   * Returns exactly `length` bytes (> 0) from `offset` on; the range is inside the export. The array belongs
   * to the server from then on and must not change.
   *
   * @param signal aborted when the server sees that the client has disconnected and doesn't need the bytes
   * @throws {ServedError} to choose what the client receives; any other error is reported as EIO
   */
  read(offset: number, length: number, signal?: AbortSignal): Uint8Array | Promise<Uint8Array>;
  /** Meta contexts by full name, such as `base:allocation`, which also lets reads leave out zeroes. */
  readonly contexts?: ReadonlyMap<string, DescribeExtents>;
  /** Requests that violate these limits get EINVAL. Default: any alignment, at most 32 MiB per read. */
  readonly blockSize?: BlockSize;
}

/** Finds an export by name. If it is a function, its exports can't be listed. */
export type ExportLookup = (name: string) => ServedExport | undefined | Promise<ServedExport | undefined>;

export type ExportSource = ReadonlyMap<string, ServedExport> | ExportLookup;
