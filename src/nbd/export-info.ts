/** Properties of an open export. */

import type { Handshake, Negotiated } from "./negotiate.js";
import { DEFAULT_MAX_PAYLOAD, TRANSMISSION } from "./wire/constants.js";
import type { BlockSize } from "./wire/options.js";
import type { Protocol } from "./wire/requests.js";

export interface ExportInfo {
  readonly name: string;
  readonly description?: string;
  /** Size in bytes. */
  readonly size: number;
  /** The transmission flags as the server sent them; the following fields interpret them. */
  readonly flags: number;
  readonly readOnly: boolean;
  readonly canMultiConn: boolean;
  readonly canDf: boolean;
  readonly canFlush: boolean;
  readonly canFua: boolean;
  readonly canTrim: boolean;
  readonly canWriteZeroes: boolean;
  readonly canFastZero: boolean;
  readonly canCache: boolean;
  readonly rotational: boolean;
  /** Undefined if the server stated none. */
  readonly blockSize?: BlockSize;
  /** The handshake by which the export was reached, by libnbd's names. */
  readonly handshake: Handshake;
  readonly protocol: Protocol;
  readonly tls: boolean;
  /** The meta contexts that were granted. */
  readonly contexts: readonly string[];
  /** All contexts of the server, if `listContexts` asked for them. */
  readonly availableContexts?: readonly string[];
}

export function exportInfo(negotiated: Negotiated): ExportInfo {
  const { name, description, size, flags, blockSize, contexts, availableContexts } = negotiated;
  const { handshake, protocol, tls } = negotiated;
  // Without HAS_FLAGS, the other flags have no meaning.
  const has = (flag: number) => (flags & TRANSMISSION.HAS_FLAGS) !== 0 && (flags & flag) !== 0;
  return {
    name,
    ...(description === undefined ? {} : { description }),
    size,
    flags,
    readOnly: has(TRANSMISSION.READ_ONLY),
    canMultiConn: has(TRANSMISSION.CAN_MULTI_CONN),
    // Simple replies can't be fragmented, and DF must not be sent to a server without structured replies.
    canDf: has(TRANSMISSION.SEND_DF) && protocol !== "simple",
    canFlush: has(TRANSMISSION.SEND_FLUSH),
    canFua: has(TRANSMISSION.SEND_FUA),
    canTrim: has(TRANSMISSION.SEND_TRIM),
    canWriteZeroes: has(TRANSMISSION.SEND_WRITE_ZEROES),
    canFastZero: has(TRANSMISSION.SEND_FAST_ZERO),
    canCache: has(TRANSMISSION.SEND_CACHE),
    rotational: has(TRANSMISSION.ROTATIONAL),
    ...(blockSize === undefined ? {} : { blockSize }),
    handshake,
    protocol,
    tls,
    contexts: [...contexts.values()],
    ...(availableContexts === undefined ? {} : { availableContexts }),
  };
}

/** Limits that every request to an export respects, in bytes. */
export interface BlockLimits {
  readonly size: number;
  /** Offsets and lengths are multiples of this, except at the end of the export. */
  readonly alignment: number;
  /** Largest payload of a request, a multiple of `alignment`. */
  readonly maxPayload: number;
  /** Longest stretch of a request without payload, a multiple of `alignment`. */
  readonly maxEffect: number;
  /** The same for block status. A smaller limit lets the server work on several replies at once. */
  readonly maxStatus: number;
}

/**
 * Used if the server stated no block sizes: the values that the specification recommends for compatibility.
 */
const DEFAULT_ALIGNMENT = 512;
/** The largest alignment; its multiples are multiples of any other. */
const MAX_ALIGNMENT = 65_536;
const MAX_COMPACT = 2 ** 32 - MAX_ALIGNMENT;
const MAX_EXTENDED = 2 ** 53 - MAX_ALIGNMENT;
const MAX_EXTENDED_STATUS = 2 ** 36;

export function blockLimitsOf(info: ExportInfo): BlockLimits {
  const alignment = info.blockSize?.minimum ?? DEFAULT_ALIGNMENT;
  const maximum = Math.min(info.blockSize?.maximum ?? DEFAULT_MAX_PAYLOAD, DEFAULT_MAX_PAYLOAD);
  const isExtended = info.protocol === "extended";
  return {
    size: info.size,
    alignment,
    maxPayload: maximum - (maximum % alignment),
    maxEffect: isExtended ? MAX_EXTENDED : MAX_COMPACT,
    maxStatus: isExtended ? MAX_EXTENDED_STATUS : MAX_COMPACT,
  };
}

/** How `other`, seen over another connection, differs from `first`; undefined if it is the same export. */
export function difference(first: ExportInfo, other: ExportInfo): string | undefined {
  if (first.size !== other.size) return `its size is ${other.size} instead of ${first.size}`;
  if (first.flags !== other.flags) return `its flags are ${other.flags} instead of ${first.flags}`;
  const contexts = [...first.contexts].sort().join(" ");
  const others = [...other.contexts].sort().join(" ");
  if (contexts !== others) return `its meta contexts are "${others}" instead of "${contexts}"`;
  if (sizesOf(first) !== sizesOf(other)) {
    return `its block sizes are ${sizesOf(other)} instead of ${sizesOf(first)}`;
  }
  if (first.protocol !== other.protocol) {
    return `its replies are ${other.protocol} instead of ${first.protocol}`;
  }
  return undefined;
}

function sizesOf({ blockSize }: ExportInfo): string {
  if (blockSize === undefined) return "not stated";
  return `${blockSize.minimum}, ${blockSize.preferred} and ${blockSize.maximum}`;
}
