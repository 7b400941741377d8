import { BackupError, DamageError } from "../base/errors.js";
import { ENTRY_BYTES, LIMITS, l2Entries, misplaced, REFCOUNT_ORDER, writeUint64 } from "./format.js";

/**
 * The header of a qcow2 image, in cluster 0. Numbers are unsigned and big-endian; version 2 ends after byte
 * 71.
 *
 *       0   4  magic "QFI\xfb"
 *       4   4  version: 2 or 3
 *       8   8  offset of the backing file's name; 0: no backing file
 *      16   4  its length in bytes, up to 1023
 *      20   4  cluster_bits: 9 .. 21
 *      24   8  virtual size in bytes
 *      32   4  encryption: 0 none, 1 AES, 2 LUKS
 *      36   4  entries of the L1 table
 *      40   8  offset of the L1 table
 *      48   8  offset of the refcount table
 *      56   4  clusters of the refcount table
 *      60   4  number of internal snapshots
 *      64   8  offset of the snapshot table
 *      72   8  incompatible features: a program that doesn't know one of them must not open the image
 *      80   8  compatible features
 *      88   8  autoclear features
 *      96   4  refcount_order: refcounts have 2^n bits, n = 0 .. 6 (version 2: always 4)
 *     100   4  header length: at least 104, a multiple of 8 (version 2: always 72)
 *     104   1  compression type: 0 zlib (raw deflate), 1 zstd; present if the length says so
 *
 * Header extensions follow; after them, still in cluster 0, the backing file's name:
 *
 *       0   4  type; 0 ends the list
 *       4   4  length of the data
 *       8   n  data, padded with zeroes to a multiple of 8
 */
export interface Qcow2Header {
  readonly version: 2 | 3;
  readonly clusterBits: number;
  readonly clusterSize: number;
  readonly virtualSize: number;
  /** Entries of the table in the file, which may be longer than the virtual size needs. */
  readonly l1Entries: number;
  readonly l1Offset: number;
  readonly refcountTableOffset: number;
  readonly refcountTableClusters: number;
  readonly refcountOrder: number;
  readonly snapshots: number;
  /**
   * The bits themselves. Unreadable images are refused, so only DIRTY, COMPRESSION and EXTENDED_L2 remain.
   */
  readonly incompatible: number;
  readonly compression: "deflate" | "zstd";
  /** As the header states them, unchecked: the code that follows the name decides what it may be. */
  readonly backingFile: string | undefined;
  readonly backingFormat: string | undefined;
  /** Persistent dirty bitmaps are stored in the image. */
  readonly hasBitmaps: boolean;
}

/** What a new image's header says; always version 3. */
type NewHeader = Pick<
  Qcow2Header,
  | "clusterBits"
  | "virtualSize"
  | "l1Entries"
  | "l1Offset"
  | "refcountTableOffset"
  | "refcountTableClusters"
  | "backingFile"
  | "backingFormat"
> & {
  readonly extended: boolean;
  /** Left out if no cluster is compressed. */
  readonly compression?: Qcow2Header["compression"] | undefined;
};

export const INCOMPATIBLE = { DIRTY: 1, CORRUPT: 2, DATA_FILE: 4, COMPRESSION: 8, EXTENDED_L2: 16 } as const;

const MAGIC = 0x514649fb;
const VERSION_2_BYTES = 72;
const VERSION_3_BYTES = 104;
/** With the compression type, which is written only if it isn't the one that older programs expect. */
const COMPRESSION_TYPE_BYTES = 112;
const EXTENSION = {
  END: 0,
  BACKING_FORMAT: 0xe2792aca,
  FEATURE_NAMES: 0x6803f857,
  BITMAPS: 0x23852875,
} as const;
const COMPRESSION_TYPES = ["deflate", "zstd"] as const;

/** The first cluster of nearly all images. {@link headerBytesOf} says whether `parseHeader` needs more. */
export const HEADER_FIRST_BYTES = 64 * 1024;

/** Everything from byte 0 to the end of the backing file's name; the rest of cluster 0 stays zero. */
export function encodeHeader(header: NewHeader): Buffer {
  const zstd = header.compression === "zstd";
  const fixed = Buffer.alloc(zstd ? COMPRESSION_TYPE_BYTES : VERSION_3_BYTES);
  fixed.writeUInt32BE(MAGIC, 0);
  fixed.writeUInt32BE(3, 4);
  fixed.writeUInt32BE(header.clusterBits, 20);
  writeUint64(fixed, header.virtualSize, 24);
  fixed.writeUInt32BE(header.l1Entries, 36);
  writeUint64(fixed, header.l1Offset, 40);
  writeUint64(fixed, header.refcountTableOffset, 48);
  fixed.writeUInt32BE(header.refcountTableClusters, 56);
  const extended = header.extended ? INCOMPATIBLE.EXTENDED_L2 : 0;
  writeUint64(fixed, extended | (zstd ? INCOMPATIBLE.COMPRESSION : 0), 72);
  fixed.writeUInt32BE(REFCOUNT_ORDER, 96);
  fixed.writeUInt32BE(fixed.length, 100);
  if (zstd) fixed.writeUInt8(COMPRESSION_TYPES.indexOf("zstd"), 104);

  const parts: Buffer[] = [fixed];
  const { backingFile, backingFormat } = header;
  if (backingFormat) parts.push(extension(EXTENSION.BACKING_FORMAT, Buffer.from(backingFormat)));
  const features = [
    ...(zstd ? [featureName(3, "compression type")] : []),
    ...(header.extended ? [featureName(4, "extended L2 entries")] : []),
  ];
  if (features.length > 0) parts.push(extension(EXTENSION.FEATURE_NAMES, Buffer.concat(features)));
  parts.push(extension(EXTENSION.END, Buffer.alloc(0)));
  if (backingFile) {
    const name = Buffer.from(backingFile);
    writeUint64(fixed, Buffer.concat(parts).length, 8);
    fixed.writeUInt32BE(name.length, 16);
    parts.push(name);
  }
  return Buffer.concat(parts);
}

function extension(type: number, data: Buffer): Buffer {
  const bytes = Buffer.alloc(8 + Math.ceil(data.length / 8) * 8);
  bytes.writeUInt32BE(type, 0);
  bytes.writeUInt32BE(data.length, 4);
  data.copy(bytes, 8);
  return bytes;
}

/**
 * A row of the feature name table, by which older programs name unknown features: kind 0, bit, 46 bytes of
 * name.
 */
function featureName(bit: number, name: string): Buffer {
  const row = Buffer.alloc(48);
  row.writeUInt8(bit, 1);
  row.write(name, 2, "latin1");
  return row;
}

/**
 * How many bytes of the beginning of a file `parseHeader` needs: the first cluster, or less if the file
 * states no plausible cluster size.
 * @param start the file's first {@link HEADER_FIRST_BYTES}, or all of it if it is shorter
 */
export function headerBytesOf(start: Buffer): number {
  const clusterBits = start.length < VERSION_2_BYTES ? 0 : start.readUInt32BE(20);
  return clusterBits > LIMITS.maxClusterBits ? 0 : 2 ** clusterBits;
}

/**
 * Reads an untrusted header. Everything that it says of tables has been checked against `fileSize`, so that
 * no length in the result can lead to a large allocation.
 *
 * @param head as many bytes of the file's beginning as {@link headerBytesOf} says, or all of it if it is
 * shorter
 * @throws {DamageError} it contradicts the format, itself or the file's size
 * @throws {BackupError} the image uses something that can't be read here
 */
export function parseHeader(head: Buffer, fileSize: number): Qcow2Header {
  if (head.length < VERSION_2_BYTES)
    throw damaged(`the file ends after ${head.length} bytes, inside the header`);
  if (head.readUInt32BE(0) !== MAGIC) throw damaged("it doesn't begin with qcow2's magic number");
  const version = head.readUInt32BE(4);
  if (version !== 2 && version !== 3) throw unsupported(`version ${version}`, { version });
  if (version === 3 && head.length < VERSION_3_BYTES) throw damaged("the file ends inside the header");
  const clusterBits = head.readUInt32BE(20);
  if (clusterBits < LIMITS.minClusterBits || clusterBits > LIMITS.maxClusterBits) {
    throw damaged(`cluster_bits is ${clusterBits}, not ${LIMITS.minClusterBits} .. ${LIMITS.maxClusterBits}`);
  }
  const clusterSize = 2 ** clusterBits;
  const cluster0 = head.subarray(0, clusterSize);

  const features = version === 3 ? parseFeatures(cluster0) : VERSION_2_FEATURES;
  if (
    (features.incompatible & INCOMPATIBLE.EXTENDED_L2) !== 0 &&
    clusterBits < LIMITS.minExtendedClusterBits
  ) {
    throw damaged(`extended L2 entries need clusters of 16 KiB, these have ${clusterSize} bytes`);
  }
  const encryption = head.readUInt32BE(32);
  if (encryption !== 0) throw unsupported(`encryption (method ${encryption})`, { encryption });

  const header = {
    version,
    clusterBits,
    clusterSize,
    ...features,
    virtualSize: readUint64(head, 24, "the virtual size"),
    l1Entries: head.readUInt32BE(36),
    l1Offset: readUint64(head, 40, "the L1 table's offset"),
    refcountTableOffset: readUint64(head, 48, "the refcount table's offset"),
    refcountTableClusters: head.readUInt32BE(56),
    snapshots: head.readUInt32BE(60),
    ...parseExtensions(cluster0, features.headerLength),
  } as const;
  checkTables(header, fileSize);
  return header;
}

type Features = Pick<Qcow2Header, "incompatible" | "refcountOrder" | "compression"> & {
  readonly headerLength: number;
};

const VERSION_2_FEATURES: Features = {
  incompatible: 0,
  refcountOrder: 4,
  compression: "deflate",
  headerLength: VERSION_2_BYTES,
};

/** The fields that only version 3 has. */
function parseFeatures(cluster0: Buffer): Features {
  const incompatible = cluster0.readUInt32BE(76);
  const known = INCOMPATIBLE.DIRTY | INCOMPATIBLE.COMPRESSION | INCOMPATIBLE.EXTENDED_L2;
  if ((incompatible & INCOMPATIBLE.CORRUPT) !== 0)
    throw damaged("it is marked as corrupt (incompatible feature bit 1)");
  if ((incompatible & INCOMPATIBLE.DATA_FILE) !== 0)
    throw unsupported("an external data file (incompatible feature bit 2)");
  const unknown = [cluster0.readUInt32BE(72), (incompatible & ~known) >>> 0] as const;
  if (unknown[0] !== 0 || unknown[1] !== 0) {
    const bit = unknown[1] !== 0 ? 31 - Math.clz32(unknown[1]) : 63 - Math.clz32(unknown[0]);
    throw unsupported(`an unknown feature (incompatible feature bit ${bit})`, { bit });
  }

  const refcountOrder = cluster0.readUInt32BE(96);
  if (refcountOrder > 6) throw damaged(`refcount_order is ${refcountOrder}, more than 6`);
  const headerLength = cluster0.readUInt32BE(100);
  if (headerLength < VERSION_3_BYTES || headerLength % 8 !== 0 || headerLength > cluster0.length) {
    throw damaged(`its header is ${headerLength} bytes long`);
  }
  const type = headerLength > VERSION_3_BYTES ? cluster0.readUInt8(104) : 0;
  if ((type !== 0) !== ((incompatible & INCOMPATIBLE.COMPRESSION) !== 0)) {
    throw damaged(`compression type ${type} contradicts incompatible feature bit 3`);
  }
  const compression = COMPRESSION_TYPES[type];
  if (compression === undefined) throw unsupported(`compression type ${type}`, { type });
  return { incompatible, refcountOrder, compression, headerLength };
}

function parseExtensions(
  cluster0: Buffer,
  headerLength: number,
): Pick<Qcow2Header, "backingFile" | "backingFormat" | "hasBitmaps"> {
  const nameOffset = readUint64(cluster0, 8, "the backing file name's offset");
  const nameLength = nameOffset === 0 ? 0 : cluster0.readUInt32BE(16);
  if (nameOffset !== 0) {
    const fits = nameOffset >= headerLength && nameOffset + nameLength <= cluster0.length;
    if (!fits || nameLength > LIMITS.backingName) {
      throw damaged(`the backing file's name (${nameLength} bytes at ${nameOffset}) doesn't fit`);
    }
  }

  let backingFormat: string | undefined;
  let hasBitmaps = false;
  const end = nameOffset === 0 ? cluster0.length : nameOffset;
  for (let at = headerLength; at + 8 <= end; ) {
    const type = cluster0.readUInt32BE(at);
    const length = cluster0.readUInt32BE(at + 4);
    if (type === EXTENSION.END) break;
    if (at + 8 + length > end) throw damaged(`the header extension at byte ${at} doesn't fit`);
    if (type === EXTENSION.BACKING_FORMAT) backingFormat = cluster0.toString("utf8", at + 8, at + 8 + length);
    if (type === EXTENSION.BITMAPS) hasBitmaps = true;
    at += 8 + Math.ceil(length / 8) * 8;
  }
  const name = cluster0.toString("utf8", nameOffset, nameOffset + nameLength);
  return { backingFile: name === "" ? undefined : name, backingFormat, hasBitmaps };
}

/** Checks that every table lies in whole clusters of the file and is no longer than QEMU allows. */
function checkTables(header: Qcow2Header, fileSize: number): void {
  const { clusterSize, l1Entries } = header;
  const extended = (header.incompatible & INCOMPATIBLE.EXTENDED_L2) !== 0;
  const needed = Math.ceil(Math.ceil(header.virtualSize / clusterSize) / l2Entries(clusterSize, extended));
  if (l1Entries < needed)
    throw damaged(`its L1 table has ${l1Entries} entries, the virtual size needs ${needed}`);
  if (header.snapshots > LIMITS.snapshots) throw damaged(`it has ${header.snapshots} snapshots`);

  const fileEnd = Math.ceil(fileSize / clusterSize) * clusterSize;
  const check = (table: string, offset: number, length: number, limit: number): void => {
    if (length === 0) return;
    const problem = misplaced(offset, { clusterSize, fileEnd });
    if (problem) throw damaged(`the offset of its ${table} table ${problem.problem}`);
    if (length > limit) throw damaged(`its ${table} table is ${length} bytes long, more than ${limit}`);
    if (offset + length > fileEnd) throw damaged(`its ${table} table goes on behind the end of the file`);
  };
  const refcountBytes = header.refcountTableClusters * clusterSize;
  check("L1", header.l1Offset, l1Entries * ENTRY_BYTES, LIMITS.l1Table);
  check("refcount", header.refcountTableOffset, refcountBytes, LIMITS.refcountTable);
}

/** Reads a 64-bit number. All of those in headers and directories are read here. */
function readUint64(buffer: Buffer, at: number, what: string): number {
  const value = buffer.readUInt32BE(at) * 2 ** 32 + buffer.readUInt32BE(at + 4);
  if (!Number.isSafeInteger(value)) throw damaged(`${what} is beyond 2^53`);
  return value;
}

function damaged(what: string): DamageError {
  return new DamageError("E_QCOW2_HEADER", `not a sound qcow2 image: ${what}`);
}

function unsupported(what: string, details: Record<string, unknown> = {}): BackupError {
  return new BackupError("E_QCOW2_UNSUPPORTED", `this qcow2 image can't be read: it uses ${what}`, {
    details,
  });
}
