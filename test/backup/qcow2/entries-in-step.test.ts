import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ALL_SUBCLUSTERS } from "../../../src/backup/image/image.js";
import {
  decodeL2Entry,
  type EntryContext,
  entriesInStep,
  l2EntryBytes,
} from "../../../src/backup/qcow2/format.js";

const CLUSTER = 65_536;
const GiB = 1024 ** 3;

type Twist = (table: Buffer, at: number, bytes: number) => void;

/** Puts another number into the half of an entry. */
function half(at: 0 | 4 | 8 | 12, of: (value: number) => number): Twist {
  return (table, entry, bytes) => {
    if (at < bytes) table.writeUInt32BE(of(table.readUInt32BE(entry + at)) >>> 0, entry + at);
  };
}

/** What an entry can have instead of being in step. */
const TWISTS: Readonly<Record<string, Twist>> = {
  elsewhere: half(4, () => 7 * CLUSTER),
  before: half(4, (low) => low - CLUSTER),
  higher: half(0, (high) => high + 1),
  reserved: half(0, (high) => high | 0x0100_0000),
  crooked: half(4, (low) => low ^ 512),
  zero: half(4, (low) => low ^ 1),
  compressed: half(0, (high) => high | 0x4000_0000),
  shared: half(0, (high) => high & 0x7fff_ffff),
  empty: (table, at) => table.fill(0, at, at + 8),
  inPart: half(12, () => 0x7fff_ffff),
  zeroInPart: half(8, () => 1),
};

/** Entries of stored clusters, one after the other in the file from `first` on. */
function tableOf(first: number, entries: number, extended: boolean): Buffer {
  const bytes = l2EntryBytes(extended);
  const table = Buffer.alloc(entries * bytes);
  for (let i = 0; i < entries; i += 1) {
    const hostOffset = first + i * CLUSTER;
    table.writeUInt32BE((Math.floor(hostOffset / 2 ** 32) | 0x8000_0000) >>> 0, i * bytes);
    table.writeUInt32BE(hostOffset % 2 ** 32, i * bytes + 4);
    if (extended) table.writeUInt32BE(ALL_SUBCLUSTERS, i * bytes + 12);
  }
  return table;
}

function contextOf(extended: boolean, fileEnd: number): EntryContext {
  return { version: 3, clusterBits: 16, clusterSize: CLUSTER, extended, fileEnd };
}

/** By decoding each entry: how many after `index` are stored as a whole, each one cluster further. */
function decodedInStep(table: Buffer, index: number, end: number, context: EntryContext): number {
  const offsetOf = (i: number): number | undefined => {
    const entry = decodeL2Entry(table, i, context);
    if (entry.kind !== "standard" || entry.dataMask !== ALL_SUBCLUSTERS) return undefined;
    return entry.hostOffset;
  };
  let count = 0;
  while (
    index + count + 1 < end &&
    offsetOf(index + count + 1) === (offsetOf(index) ?? 0) + (count + 1) * CLUSTER
  )
    count += 1;
  return count;
}

describe("entries in step with the one before", () => {
  it("are never more than decoding each of them finds, whatever an entry has instead", () => {
    const twists = fc.array(
      fc.record({ at: fc.integer({ min: 1, max: 63 }), twist: fc.constantFrom(...Object.values(TWISTS)) }),
      {
        maxLength: 4,
      },
    );
    const starts = fc.constantFrom(CLUSTER, GiB, 2 ** 32 - 5 * CLUSTER, 2 ** 32, 5 * 2 ** 32 - CLUSTER);
    fc.assert(
      fc.property(
        fc.record({
          first: starts,
          extended: fc.boolean(),
          index: fc.integer({ min: 0, max: 40 }),
          spare: fc.integer({ min: 1, max: 80 }),
          twists,
        }),
        ({ first, extended, index, spare, twists }) => {
          const bytes = l2EntryBytes(extended);
          const table = tableOf(first, 64, extended);
          for (const { at, twist } of twists) if (at > index) twist(table, at * bytes, bytes);
          const context = contextOf(extended, first + index * CLUSTER + spare * CLUSTER);
          const found = entriesInStep(table, index, 64, context);
          expect(found).toBeLessThanOrEqual(decodedInStep(table, index, 64, context));
        },
      ),
      { numRuns: 3000 },
    );
  });

  it.each([false, true])("are all that follow it in a table written in order (extended: %s)", (extended) => {
    const table = tableOf(3 * CLUSTER, 64, extended);
    expect(entriesInStep(table, 0, 64, contextOf(extended, GiB))).toBe(63);
    expect(entriesInStep(table, 20, 64, contextOf(extended, GiB))).toBe(43);
    expect(entriesInStep(table, 20, 30, contextOf(extended, GiB))).toBe(9);
    expect(entriesInStep(table, 63, 64, contextOf(extended, GiB))).toBe(0);
    // The file ends after the fifth.
    expect(entriesInStep(table, 0, 64, contextOf(extended, 8 * CLUSTER))).toBe(4);
  });
});
