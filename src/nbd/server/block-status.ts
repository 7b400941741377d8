import type { DescribeExtents, StatusExtent } from "./export.js";

/**
 * Makes the extents that `describe` returns for a range fit for one reply.
 *
 *     requested            |<------------ length ------------>|
 *     describe gives       |  1   |  1   |  0   |      1           |
 *     reply, limit 3       |  1          |  0   |      1      |
 *     reply, limit 2       |  1          |  0   |              (the client asks again from here)
 *
 * Equal neighbours are merged, the overshoot is cut off, and the rest is left out after `limit` extents.
 */
export function extentsForReply(
  describe: DescribeExtents,
  offset: number,
  length: number,
  limit: number,
): StatusExtent[] {
  const extents: StatusExtent[] = [];
  let covered = 0;
  let open: StatusExtent | undefined;
  for (const { length: described, flags } of describe(offset, length)) {
    const fits = Math.min(described, length - covered);
    if (open?.flags === flags) {
      open = { length: open.length + fits, flags };
    } else {
      if (open !== undefined) extents.push(open);
      open = extents.length < limit ? { length: fits, flags } : undefined;
    }
    covered += fits;
    if (open === undefined || covered === length) break;
  }
  if (open !== undefined) extents.push(open);
  return extents;
}
