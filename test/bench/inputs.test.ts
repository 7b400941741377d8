import { describe, expect, it } from "vitest";
import { fillRandom, fillText } from "../../bench/data.js";
import { evenly, scattered } from "../../bench/extents.js";
import { scaled } from "../../bench/scale.js";
import { WORKLOADS } from "../../bench/workloads/index.js";
import { nbdpull } from "../support/nbdpull.js";

const KiB = 1024;
const MiB = 1024 * KiB;

describe("the data extents of a disk", () => {
  it("are in order, inside the disk and apart from each other", () => {
    for (const list of [
      evenly(64 * MiB, 16, MiB),
      scattered(64 * MiB, 100, 64 * KiB),
      scattered(32 * MiB, 1000, 4 * KiB),
    ]) {
      let end = -1;
      for (const { offset, length } of list) {
        expect(offset % length).toBe(0);
        expect(offset).toBeGreaterThan(end);
        end = offset + length;
      }
      expect(end).toBeLessThanOrEqual(64 * MiB);
    }
  });

  it("are the same in every run", () => {
    expect(scattered(64 * MiB, 100, 64 * KiB)).toEqual(scattered(64 * MiB, 100, 64 * KiB));
  });

  it("need a disk that is large enough", () => {
    expect(() => scattered(MiB, 100, 64 * KiB)).toThrow("larger disk");
    expect(() => evenly(MiB, 100, 64 * KiB)).toThrow("larger disk");
  });
});

describe("content", () => {
  it("differs by offset and generation, and does not start with zeroes", () => {
    for (const fill of [fillRandom, fillText]) {
      const blocks = [
        [0, 1],
        [4096, 1],
        [0, 2],
      ].map(([offset = 0, generation = 0]) => {
        const block = Buffer.alloc(4096);
        fill(block, offset, generation);
        return block.toString("latin1");
      });
      expect(new Set(blocks).size).toBe(3);
      for (const block of blocks) expect(block).not.toMatch(/^\0{16}/);
    }
  });
});

describe("sizes", () => {
  it("scale in whole units, never to zero", () => {
    expect(scaled(4096, 0.5, 512)).toBe(2048);
    expect(scaled(4096, 0.0001, 512)).toBe(512);
    expect(scaled(6000, 0.1, 1)).toBe(600);
  });
});

describe("every workload", () => {
  it("has a unique name, and refers only to contenders that it has", () => {
    expect(new Set(WORKLOADS.map(({ name }) => name)).size).toBe(WORKLOADS.length);
    for (const { name, contenders, reference, targets } of WORKLOADS) {
      const names = contenders.map((contender) => contender.name);
      expect(new Set(names).size, name).toBe(names.length);
      const named = [
        reference,
        ...targets.flatMap((target) => [target.contender, target.against ?? reference]),
      ];
      for (const one of named) expect(names, name).toContain(one);
    }
  });
});

describe("the workloads of starting", () => {
  it("measure every command that there is", async () => {
    const { stdout } = await nbdpull("--help");
    // Options begin with a hyphen.
    const names = [...stdout.matchAll(/^ {2}([a-z]+)/gm)].map(([, name = ""]) => name);
    const commands = names.filter((name) => name !== "help").map((name) => `${name} --help`);
    expect(commands.length).toBeGreaterThan(20);
    const starts = WORKLOADS.filter(({ name }) => name.startsWith("start-node-"));
    expect(starts.length).toBeGreaterThan(0);
    for (const { name, contenders } of starts) {
      const measured = contenders.map((contender) => contender.name).filter((one) => / --help$/.test(one));
      expect([...measured].sort(), name).toEqual([...commands].sort());
    }
  });
});

describe("the memory of what is measured", () => {
  it("has the limit that is promised", () => {
    const limits = WORKLOADS.flatMap(({ name, targets }) =>
      targets.filter(({ metric }) => metric === "rss").map(({ atMost }) => [name, atMost] as const),
    );
    const of = (pattern: RegExp) =>
      new Set(limits.flatMap(([name, most]) => (pattern.test(name) ? [most] : [])));
    expect([...of(/^libvirt-/)]).toEqual([90]);
    expect([...of(/^tls$/)]).toEqual([100]);
    expect([...of(/^store-/)]).toEqual([192]);
    expect([...of(/^(?!libvirt-|tls$|store-)/)]).toEqual([128]);
  });
});
