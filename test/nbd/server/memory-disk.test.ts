import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { MemoryDisk, type ServedExport, type StatusExtent } from "../../../src/nbd/server/index.js";

const text = (bytes: Uint8Array | Promise<Uint8Array>): string => {
  if (bytes instanceof Promise) throw new Error("a memory disk answers at once");
  return Buffer.from(bytes).toString("latin1").replaceAll("\0", ".");
};

const extents = (point: ServedExport, context: string, offset = 0, length = point.size): StatusExtent[] => {
  const describe = point.contexts?.get(context);
  if (describe === undefined) throw new Error(`no context ${context}`);
  return [...describe(offset, length)];
};

describe("memory disk", () => {
  test("reads zeroes where nothing was written, and elsewhere what was written", () => {
    const disk = new MemoryDisk({ size: 20, pageSize: 4 });
    disk.write(6, Buffer.from("abcdefg"));
    expect(text(disk.read(0, 20))).toBe("......abcdefg.......");
    expect(text(disk.read(7, 3))).toBe("bcd");
  });

  test("tells data, zeroes and holes apart by pages", () => {
    const disk = new MemoryDisk({ size: 22, pageSize: 4 });
    disk.write(0, Buffer.from("aaaabbbbcccc"));
    disk.writeZeroes(3, 5);
    disk.discard(8, 5);
    disk.write(21, Buffer.from("z"));
    expect(text(disk.read(0, 22))).toBe("aaa..................z");
    expect(extents(disk.freeze(), "base:allocation")).toEqual([
      { length: 4, flags: 0 },
      { length: 4, flags: 2 },
      { length: 12, flags: 3 },
      { length: 2, flags: 0 },
    ]);
  });

  test("discards a short last page as a whole", () => {
    const disk = new MemoryDisk({ size: 6, pageSize: 4 });
    disk.write(4, Buffer.from("xy"));
    disk.discard(4, 2);
    expect(extents(disk.freeze(), "base:allocation")).toEqual([{ length: 6, flags: 3 }]);
  });

  test("describes only the requested range", () => {
    const disk = new MemoryDisk({ size: 16, pageSize: 4 });
    disk.write(8, Buffer.from("x"));
    expect(extents(disk.freeze(), "base:allocation", 6, 5)).toEqual([
      { length: 2, flags: 3 },
      { length: 3, flags: 0 },
    ]);
  });

  test("marks writes, zeroes and discards in every bitmap from its start on", () => {
    const disk = new MemoryDisk({ size: 32, pageSize: 4 });
    disk.write(0, Buffer.from("before"));
    disk.startBitmap("coarse", 8);
    disk.write(7, Buffer.from("xy"));
    disk.startBitmap("fine", 2);
    disk.writeZeroes(17, 1);
    disk.discard(30, 2);
    const point = disk.freeze();
    expect(extents(point, "qemu:dirty-bitmap:coarse")).toEqual([{ length: 32, flags: 1 }]);
    expect(extents(point, "qemu:dirty-bitmap:fine")).toEqual([
      { length: 16, flags: 0 },
      { length: 2, flags: 1 },
      { length: 12, flags: 0 },
      { length: 2, flags: 1 },
    ]);
  });

  test("a frozen point keeps content, allocation and bitmaps while the disk changes", () => {
    const disk = new MemoryDisk({ size: 12, pageSize: 4 });
    disk.startBitmap("b", 4);
    disk.write(0, Buffer.from("one1"));
    const first = disk.freeze();
    disk.write(1, Buffer.from("X"));
    disk.write(4, Buffer.from("two2"));
    const second = disk.freeze();
    disk.discard(0, 12);
    disk.startBitmap("b", 4);

    expect(text(first.read(0, 12))).toBe("one1........");
    expect(text(second.read(0, 12))).toBe("oXe1two2....");
    expect(text(disk.read(0, 12))).toBe("............");
    expect(extents(first, "base:allocation")[0]).toEqual({ length: 4, flags: 0 });
    expect(extents(first, "qemu:dirty-bitmap:b")[0]).toEqual({ length: 4, flags: 1 });
    expect(extents(second, "qemu:dirty-bitmap:b")[0]).toEqual({ length: 8, flags: 1 });
    expect(extents(disk.freeze(), "qemu:dirty-bitmap:b")).toEqual([{ length: 12, flags: 0 }]);
  });

  test("refuses ranges outside the disk and invalid sizes", () => {
    const disk = new MemoryDisk({ size: 10 });
    expect(() => disk.read(8, 3)).toThrow(RangeError);
    expect(() => disk.write(-1, Buffer.from("x"))).toThrow(RangeError);
    expect(() => disk.discard(0.5, 1)).toThrow(RangeError);
    expect(() => disk.writeZeroes(0, Number.NaN)).toThrow(RangeError);
    expect(() => disk.startBitmap("b", 0)).toThrow(RangeError);
    expect(() => new MemoryDisk({ size: -1 })).toThrow(RangeError);
    expect(() => new MemoryDisk({ size: 1, pageSize: 0 })).toThrow(RangeError);
  });

  test("behaves like a plain array of bytes with a set of changed blocks", () => {
    const SIZE = 61;
    const operation = fc.record({
      kind: fc.constantFrom("write", "writeZeroes", "discard", "freeze"),
      from: fc.nat(SIZE),
      to: fc.nat(SIZE),
      fill: fc.integer({ min: 1, max: 255 }),
    });
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 30 }), (operations) => {
        const disk = new MemoryDisk({ size: SIZE, pageSize: 8 });
        disk.startBitmap("b", 5);
        const model = new Uint8Array(SIZE);
        const dirty = new Uint8Array(SIZE);
        const points: { point: ServedExport; content: Uint8Array; dirty: Uint8Array }[] = [];
        for (const { kind, from, to, fill } of operations) {
          const offset = Math.min(from, to);
          const length = Math.abs(from - to);
          if (kind === "freeze") {
            points.push({ point: disk.freeze(), content: model.slice(), dirty: dirty.slice() });
            continue;
          }
          if (kind === "write") disk.write(offset, new Uint8Array(length).fill(fill));
          else disk[kind === "discard" ? "discard" : "writeZeroes"](offset, length);
          model.fill(kind === "write" ? fill : 0, offset, offset + length);
          if (length > 0) dirty.fill(1, offset - (offset % 5), Math.ceil((offset + length) / 5) * 5);
        }
        points.push({ point: disk.freeze(), content: model, dirty });

        for (const { point, content, dirty: changed } of points) {
          expect(point.read(0, SIZE)).toEqual(content);
          expect(spread(extents(point, "qemu:dirty-bitmap:b"))).toEqual([...changed]);
          const allocation = spread(extents(point, "base:allocation"));
          expect(allocation.filter((flags, index) => flags !== 0 && content[index] !== 0)).toEqual([]);
        }
      }),
      { numRuns: 200 },
    );
  });
});

/** One flag per byte. */
function spread(list: readonly StatusExtent[]): number[] {
  return list.flatMap(({ length, flags }) => new Array<number>(length).fill(flags));
}
