/**
 * The qcow2 image format: this folder reads, writes, checks and edits images, compressed or not. Read this
 * file first: it has the numbers of the format and its table entries, after QEMU's docs/interop/qcow2.txt.
 * Then read `header.ts`, `layout.ts` and `tables.ts` (what a new image consists of) and `finish.ts` (the
 * order in which it is written). On these build `writer.ts` and `compressed-writer.ts`
 * (`compress-cluster.ts`, `stream-placement.ts`, `collected-writes.ts`); `open.ts`, `reader.ts`
 * (`decompress.ts`, `single-use.ts`), `check.ts` (`refcounts.ts`) and `editor.ts` are for existing images.
 *
 * Nothing here knows NBD, libvirt or repositories, and nothing here opens a backing file. This file is
 * pure: it turns bytes into values and values into bytes. All numbers in the file are unsigned and
 * big-endian; 64-bit entries are handled as two halves.
 */

import { ALL_SUBCLUSTERS } from "../image/image.js";

/** QEMU's limits. Sizes are in bytes. */
export const LIMITS = {
  minClusterBits: 9,
  maxClusterBits: 21,
  /** With extended L2 entries a subcluster must not be smaller than a sector. */
  minExtendedClusterBits: 14,
  l1Table: 32 * 1024 * 1024,
  refcountTable: 8 * 1024 * 1024,
  backingName: 1023,
  snapshots: 65_536,
} as const;

/** Bytes of one entry of the L1 table and of the refcount table. */
export const ENTRY_BYTES = 8;

/** Bytes of an L2 entry; extended ones carry the state of 32 subclusters. */
export function l2EntryBytes(extended: boolean): number {
  return extended ? 16 : 8;
}

/** Guest clusters that one L2 table describes. */
export function l2Entries(clusterSize: number, extended: boolean): number {
  return clusterSize / l2EntryBytes(extended);
}

/** Bytes of an entry of a refcount block in the images that we write: refcount_order 4. */
export const REFCOUNT_BYTES = 2;
export const REFCOUNT_ORDER = 4;

const TWO_TO_32 = 0x1_0000_0000;
/** Bit 63: the cluster's refcount is exactly one. */
const COPIED_HIGH = 0x8000_0000;
/** Bit 62. */
const COMPRESSED_HIGH = 0x4000_0000;
/** Bits 9-55, the offset. */
const OFFSET_HIGH = 0x00ff_ffff;
const OFFSET_LOW = 0xffff_fe00;
/** Bit 0 of a standard L2 entry: reads as zeroes. */
const ZERO_LOW = 1;

/** Writes the 64-bit number `value` (up to 2^53 - 1). */
export function writeUint64(buffer: Buffer, value: number, at: number): void {
  buffer.writeUInt32BE(Math.floor(value / TWO_TO_32), at);
  buffer.writeUInt32BE(value % TWO_TO_32, at + 4);
}

/**
 * Writes an L1 entry, or the L2 entry of stored data, for a cluster with refcount 1. The decoders list the
 * fields.
 */
export function writeCopiedOffset(buffer: Buffer, hostOffset: number, at: number): void {
  buffer.writeUInt32BE(COPIED_HIGH + Math.floor(hostOffset / TWO_TO_32), at);
  buffer.writeUInt32BE(hostOffset % TWO_TO_32, at + 4);
}

/** Writes the standard L2 entry of a cluster that reads as zeroes and has no place in the file. */
export function writeZeroEntry(buffer: Buffer, at: number): void {
  buffer.writeUInt32BE(0, at);
  buffer.writeUInt32BE(ZERO_LOW, at + 4);
}

/** Writes an extended L2 entry; `hostOffset` counts only if `dataMask` isn't 0. */
export function writeExtendedEntry(
  buffer: Buffer,
  entry: { readonly hostOffset: number; readonly dataMask: number; readonly zeroMask: number },
  at: number,
): void {
  if (entry.dataMask !== 0) writeCopiedOffset(buffer, entry.hostOffset, at);
  else writeUint64(buffer, 0, at);
  buffer.writeUInt32BE(entry.zeroMask, at + 8);
  buffer.writeUInt32BE(entry.dataMask, at + 12);
}

/**
 * Writes the L2 entry of a compressed cluster, as `decodeCompressed` reads it. In an extended entry, the
 * subcluster masks stay 0, as they must.
 */
export function writeCompressedEntry(
  buffer: Buffer,
  { hostOffset, streamBytes }: { readonly hostOffset: number; readonly streamBytes: number },
  clusterSize: number,
  at: number,
): void {
  const last = hostOffset + streamBytes - 1;
  const moreSectors = Math.floor(last / 512) - Math.floor(hostOffset / 512);
  const high = Math.floor(hostOffset / TWO_TO_32);
  const shift = compressedOffsetBits(Math.log2(clusterSize)) - 32;
  buffer.writeUInt32BE(COMPRESSED_HIGH + moreSectors * 2 ** shift + high, at);
  buffer.writeUInt32BE(hostOffset % TWO_TO_32, at + 4);
}

/** The number of bits for the host offset of a compressed cluster. */
export function compressedOffsetBits(clusterBits: number): number {
  return 62 - (clusterBits - 8);
}

/** The facts about the image against which entries are checked. */
export interface EntryContext {
  readonly version: number;
  readonly clusterBits: number;
  readonly clusterSize: number;
  readonly extended: boolean;
  /** Length of the file, rounded up to whole clusters: QEMU reads zeroes up to there. */
  readonly fileEnd: number;
}

interface Invalid {
  readonly kind: "invalid";
  /** Completes the sentence "the entry ...". */
  readonly problem: string;
}

/** An entry that points to another table. */
type TableEntry = NoTable | { readonly kind: "table"; readonly hostOffset: number } | Invalid;
type L1Entry =
  | NoTable
  | { readonly kind: "table"; readonly hostOffset: number; readonly copied: boolean }
  | Invalid;

interface NoTable {
  readonly kind: "none";
}

const NO_TABLE: NoTable = { kind: "none" };

/**
 *     bits 0-8    reserved, 0
 *          9-55   offset of an L2 table; 0: none, nothing that it would describe is allocated
 *          56-62  reserved, 0
 *          63     COPIED: the table's refcount is one
 */
export function decodeL1Entry(table: Buffer, index: number, context: EntryContext): L1Entry {
  const high = table.readUInt32BE(index * ENTRY_BYTES);
  const low = table.readUInt32BE(index * ENTRY_BYTES + 4);
  if (high === 0 && low === 0) return NO_TABLE;
  if ((high & 0x7f00_0000) !== 0 || (low & ~OFFSET_LOW) !== 0) return invalid("has reserved bits set");
  const hostOffset = (high & OFFSET_HIGH) * TWO_TO_32 + low;
  const problem = misplaced(hostOffset, context);
  return problem ?? { kind: "table", hostOffset, copied: high >= COPIED_HIGH };
}

export type L2Entry = StandardEntry | CompressedEntry | Invalid;

/** Subclusters in neither mask are unallocated. Without extended entries each mask is all ones or 0. */
interface StandardEntry {
  readonly kind: "standard";
  /** 0: none. Clusters of zeroes, and even unallocated ones, may have a place reserved. */
  readonly hostOffset: number;
  readonly copied: boolean;
  readonly dataMask: number;
  readonly zeroMask: number;
}

interface CompressedEntry {
  readonly kind: "compressed";
  /** Need not be aligned to anything. */
  readonly hostOffset: number;
  /** Up to the end of the stream's last sector, which may extend past the compressed data. */
  readonly length: number;
}

const UNALLOCATED: L2Entry = { kind: "standard", hostOffset: 0, copied: false, dataMask: 0, zeroMask: 0 };

/**
 * The first entry from `index` on that isn't all zeroes; `count` if there is none before it. An image of what
 * has changed has few others.
 */
export function firstAllocated(table: Buffer, index: number, count: number, extended: boolean): number {
  const words = l2EntryBytes(extended) / Uint32Array.BYTES_PER_ELEMENT;
  const bits = new Uint32Array(table.buffer, table.byteOffset, count * words);
  for (let at = index * words; at < bits.length; at += 1) {
    if (bits[at] !== 0) return Math.floor(at / words);
  }
  return count;
}

/**
 * How many entries after the one at `index`, which must be a valid one of a cluster that is stored as a whole,
 * differ from the one before them only by leading one cluster further. So they are valid, too, and need not
 * be decoded: of an image that was written in order, these are nearly all.
 * @param end index of the first entry that doesn't count
 */
export function entriesInStep(table: Buffer, index: number, end: number, context: EntryContext): number {
  const { clusterSize, extended, fileEnd } = context;
  const bytes = l2EntryBytes(extended);
  // Of all ways to read a number of this order, the fastest where V8 has compiled nothing yet.
  const view = new DataView(table.buffer, table.byteOffset, end * bytes);
  let at = index * bytes;
  const high = view.getUint32(at);
  let low = view.getUint32(at + 4);
  // Behind the file's end, or where the upper half changes, too, the entries are decoded one by one.
  const lastLow = Math.min(TWO_TO_32, fileEnd - (high & OFFSET_HIGH) * TWO_TO_32) - clusterSize;
  const masks = extended ? [view.getUint32(at + 8), view.getUint32(at + 12)] : undefined;
  for (let step = 1; ; step += 1) {
    at += bytes;
    low += clusterSize;
    const isInStep =
      index + step < end && low <= lastLow && view.getUint32(at + 4) === low && view.getUint32(at) === high;
    if (!isInStep) return step - 1;
    if (masks && (view.getUint32(at + 8) !== masks[0] || view.getUint32(at + 12) !== masks[1])) {
      return step - 1;
    }
  }
}

/**
 *     bits 0      the cluster reads as zeroes (not in version 2, not in extended entries)
 *          1-8    reserved, 0
 *          9-55   host offset; 0: none
 *          56-61  reserved, 0
 *          62     compressed, see below
 *          63     COPIED: the cluster's refcount is one; never on compressed ones
 *
 * An extended entry has 64 bits more, 0 for compressed clusters:
 *
 *     bits 0-31   subcluster is stored at its place in the host cluster, bit 0 = the first
 *          32-63  subcluster reads as zeroes; never together with the bit above
 */
export function decodeL2Entry(table: Buffer, index: number, context: EntryContext): L2Entry {
  const at = index * l2EntryBytes(context.extended);
  const high = table.readUInt32BE(at);
  const low = table.readUInt32BE(at + 4);
  const zeroMask = context.extended ? table.readUInt32BE(at + 8) : (low & ZERO_LOW) * ALL_SUBCLUSTERS;
  const bitmap = context.extended ? table.readUInt32BE(at + 12) : 0;
  if (high === 0 && low === 0 && zeroMask === 0 && bitmap === 0) return UNALLOCATED;
  if ((high & COMPRESSED_HIGH) !== 0) {
    if (context.extended && (zeroMask !== 0 || bitmap !== 0)) {
      return invalid("has subclusters, but is compressed");
    }
    return decodeCompressed(high, low, context);
  }

  const zeroFlag = context.extended || context.version < 3 ? 0 : ZERO_LOW;
  if ((high & 0x3f00_0000) !== 0 || (low & ~OFFSET_LOW & ~zeroFlag) !== 0) {
    return invalid("has reserved bits set");
  }
  const hostOffset = (high & OFFSET_HIGH) * TWO_TO_32 + ((low & OFFSET_LOW) >>> 0);
  const copied = high >= COPIED_HIGH;
  const allocated = hostOffset === 0 ? 0 : ALL_SUBCLUSTERS;
  const dataMask = context.extended ? bitmap : (allocated & ~zeroMask) >>> 0;
  if ((dataMask & zeroMask) !== 0) return invalid("has subclusters that are both stored and zero");
  if (hostOffset === 0) {
    if (copied) return invalid("is marked as copied, but has no offset");
    if (dataMask !== 0) return invalid("has stored subclusters, but no offset");
    return { kind: "standard", hostOffset, copied, dataMask, zeroMask };
  }
  return misplaced(hostOffset, context) ?? { kind: "standard", hostOffset, copied, dataMask, zeroMask };
}

/**
 *     bits 0 .. x-1   host offset in bytes, where x = 62 - (cluster_bits - 8)
 *          x .. 61    number of 512-byte sectors that the data goes on in after the one with its first byte
 */
function decodeCompressed(high: number, low: number, context: EntryContext): CompressedEntry | Invalid {
  if (high >= COPIED_HIGH) return invalid("is marked as copied, but is compressed");
  const offsetBitsInHigh = compressedOffsetBits(context.clusterBits) - 32;
  const hostOffset = (high & (2 ** offsetBitsInHigh - 1)) * TWO_TO_32 + low;
  const moreSectors = (high & (COMPRESSED_HIGH - 1)) >>> offsetBitsInHigh;
  if (hostOffset < context.clusterSize) return invalid("points into the header");
  const length = (moreSectors + 1) * 512 - (hostOffset % 512);
  if (hostOffset + length > context.fileEnd)
    return invalid(`points behind the end of the file (${hostOffset})`);
  return { kind: "compressed", hostOffset, length };
}

/**
 *     bits 0-8    reserved, 0
 *          9-63   offset of a refcount block; 0: none, and all its refcounts are 0
 */
export function decodeRefcountTableEntry(table: Buffer, index: number, context: EntryContext): TableEntry {
  const high = table.readUInt32BE(index * ENTRY_BYTES);
  const low = table.readUInt32BE(index * ENTRY_BYTES + 4);
  if (high === 0 && low === 0) return NO_TABLE;
  const hostOffset = high * TWO_TO_32 + low;
  return misplaced(hostOffset, context) ?? { kind: "table", hostOffset };
}

/** A refcount of 2^order bits. If several share a byte, the first has the lowest bits. */
export function decodeRefcount(block: Buffer, index: number, order: number): number {
  if (order === REFCOUNT_ORDER) return block.readUInt16BE(index * REFCOUNT_BYTES);
  if (order < 3) {
    const bits = 2 ** order;
    const shift = (index * bits) % 8;
    return (block.readUInt8((index * bits) >> 3) >> shift) & (2 ** bits - 1);
  }
  if (order === 6) return block.readUInt32BE(index * 8) * TWO_TO_32 + block.readUInt32BE(index * 8 + 4);
  const bytes = 2 ** (order - 3);
  return block.readUIntBE(index * bytes, bytes);
}

/** The problem of a host offset that must point to a whole cluster, if there is one. */
export function misplaced(
  hostOffset: number,
  { clusterSize, fileEnd }: Pick<EntryContext, "clusterSize" | "fileEnd">,
): Invalid | undefined {
  let problem: string;
  // Bitwise operators use the low 32 bits, which suffice for a power of two of up to 2 MiB.
  if ((hostOffset & (clusterSize - 1)) !== 0) problem = "points between two clusters";
  else if (hostOffset < clusterSize) problem = "points to the header";
  else if (hostOffset >= fileEnd) problem = "points behind the end of the file";
  else return undefined;
  // The number is formatted in one place: if several branches did it, V8 would do it ahead of them, for every
  // entry.
  return invalid(`${problem} (${hostOffset})`);
}

function invalid(problem: string): Invalid {
  return { kind: "invalid", problem };
}
