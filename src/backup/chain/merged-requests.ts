/** Bytes of a file that are needed. */
export interface NeededRange {
  readonly position: number;
  readonly length: number;
}

/** A request for neighbouring ranges of a file, and for what lies between them. */
export interface MergedRequest<R extends NeededRange> extends NeededRange {
  /** In ascending order of their positions. They may overlap. */
  readonly ranges: readonly R[];
}

interface MergeLimits {
  /** Most bytes of one request that consists of several ranges. */
  readonly most: number;
  /** Largest gap between two ranges that is read too. */
  readonly gap: number;
  /** Most bytes of all gaps together. */
  readonly spare: number;
}

/** Of requests to an object store. To answer one costs the store and us as much as reading the gap. */
export const REQUEST_LIMITS = { most: 8 * 1024 * 1024, gap: 128 * 1024 } as const;

/**
 * Merges neighbouring ranges of one file into requests, since each request costs as much as many bytes.
 *
 *     ranges    |xx|xxxx| gap |xx|          large gap           |xxxx|
 *     requests  |----------------|                              |----|
 *
 * @returns the requests by position, and the bytes of the gaps that they read
 */
export function mergedRequests<R extends NeededRange>(
  needed: readonly R[],
  { most, gap, spare }: MergeLimits,
): { readonly requests: MergedRequest<R>[]; readonly gapBytes: number } {
  const requests: { position: number; length: number; ranges: R[] }[] = [];
  let gapBytes = 0;
  for (const range of needed.toSorted((a, b) => a.position - b.position)) {
    const end = range.position + range.length;
    const last = requests.at(-1);
    const between = last ? range.position - last.position - last.length : Number.POSITIVE_INFINITY;
    const joins = last !== undefined && between <= Math.min(gap, spare - gapBytes);
    if (joins && end - last.position <= most) {
      gapBytes += Math.max(0, between);
      last.length = Math.max(last.length, end - last.position);
      last.ranges.push(range);
    } else {
      requests.push({ position: range.position, length: range.length, ranges: [range] });
    }
  }
  return { requests, gapBytes };
}
