import { randomFillSync } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Manifest } from "../../../src/backup/repository/manifest.js";
import type { BlockTarget } from "../../../src/backup/restore/block-target.js";
import { restoreOver } from "../../../src/backup/restore/restore-over.js";
import { MemoryChain } from "../../support/memory-chain.js";

const KiB = 1024;
const CLUSTER = 64 * KiB;
const SIZE = 64 * CLUSTER + 1000;

/** A slow target in memory that counts its concurrent writes. */
class MemoryTarget implements BlockTarget {
  readonly name = "memory";
  readonly size: number;
  readonly writable: number;
  readonly preferredBlock = undefined;
  readonly content: Buffer;
  readonly before: Buffer;
  touched = false;
  flushes = 0;
  writing = { now: 0, most: 0 };
  zeroing = { now: 0, most: 0 };
  /** A write of this byte fails. */
  badByte: number | undefined;

  constructor(size: number) {
    this.size = size;
    this.writable = size;
    this.content = randomFillSync(Buffer.alloc(size));
    this.before = Buffer.from(this.content);
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    this.touched = true;
    await this.#count(this.writing, data.length);
    if (this.badByte !== undefined && offset <= this.badByte && this.badByte < offset + data.length) {
      throw Object.assign(new Error("the medium is worn out"), { code: "EIO" });
    }
    this.content.set(data, offset);
  }

  async zero(offset: number, length: number): Promise<void> {
    this.touched = true;
    await this.#count(this.zeroing, 1);
    this.content.fill(0, offset, offset + length);
  }

  async flush(): Promise<void> {
    expect([this.writing.now, this.zeroing.now]).toEqual([0, 0]);
    this.flushes += 1;
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  async #count(what: { now: number; most: number }, amount: number): Promise<void> {
    what.now += amount;
    what.most = Math.max(what.most, what.now);
    await sleep(Math.random() * 4);
    what.now -= amount;
  }
}

let chain: MemoryChain;
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

function newest(): Manifest {
  const point = chain.points.at(-1);
  if (!point) throw new Error("no point");
  return point;
}

async function restoreTo(target: BlockTarget, inFlight = 512 * KiB): Promise<void> {
  await restoreOver({
    repository: chain.repository,
    domain: MemoryChain.domain,
    point: newest(),
    disk: "vda",
    target,
    sync: true,
    window: { inFlight, requestSize: 128 * KiB },
  });
}

describe("writing over a target", () => {
  it("leaves exactly the point, whatever was written, zeroed or discarded, and keeps what follows it", async () => {
    const change = fc.record({
      kind: fc.constantFrom("data", "zeroes", "discard", "zeroes as data"),
      offset: fc.nat(SIZE - 1),
      length: fc.integer({ min: 1, max: 9 * CLUSTER }),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(change, { maxLength: 8 }), fc.nat(3 * CLUSTER), async (changes, behind) => {
        for (const { kind, offset, length } of changes) {
          const inside = Math.min(length, SIZE - offset);
          if (kind === "data") chain.disk.write(offset, randomFillSync(Buffer.alloc(inside)));
          else if (kind === "zeroes as data") chain.disk.write(offset, Buffer.alloc(inside));
          else if (kind === "zeroes") chain.disk.writeZeroes(offset, inside);
          else chain.disk.discard(offset, inside);
        }
        const { manifest } = await chain.take();
        const target = new MemoryTarget(SIZE + behind);
        await restoreTo(target);
        const wanted = Buffer.from((await chain.contents.get(manifest.id)?.read(0, SIZE)) ?? []);
        expect(target.content.subarray(0, SIZE).equals(wanted)).toBe(true);
        expect(target.content.subarray(SIZE).equals(target.before.subarray(SIZE))).toBe(true);
        expect(target.flushes).toBe(1);
      }),
      { numRuns: 25 },
    );
  });

  it("has several writes in flight, but no more than fit the window", async () => {
    for (let cluster = 0; cluster < 64; cluster += 3) {
      chain.disk.write(cluster * CLUSTER, randomFillSync(Buffer.alloc(CLUSTER)));
    }
    await chain.take();
    const target = new MemoryTarget(SIZE);
    await restoreTo(target);
    expect(target.writing.most).toBeGreaterThan(2 * CLUSTER);
    expect(target.writing.most).toBeLessThanOrEqual(512 * KiB);
    expect(target.zeroing.most).toBeGreaterThan(1);
    expect(target.zeroing.most).toBeLessThanOrEqual(4);
  });

  it("waits for all writes when one fails, and reports the target as half-written", async () => {
    chain.disk.write(0, randomFillSync(Buffer.alloc(SIZE)));
    await chain.take();
    const target = new MemoryTarget(SIZE);
    target.badByte = 5 * CLUSTER;
    await expect(restoreTo(target)).rejects.toMatchObject({
      code: "EIO",
      message: expect.stringMatching(/worn out.*memory is half-written/s),
      details: { target: "memory", halfWritten: true },
    });
    expect([target.writing.now, target.zeroing.now, target.flushes]).toEqual([0, 0, 0]);
  });

  it("does not touch a target that is too small", async () => {
    chain.disk.write(0, Buffer.alloc(CLUSTER, 1));
    await chain.take();
    const target = new MemoryTarget(SIZE - 1);
    await expect(restoreTo(target)).rejects.toMatchObject({ code: "E_TARGET_TOO_SMALL" });
    expect(target.touched).toBe(false);
  });
});
