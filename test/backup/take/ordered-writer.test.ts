import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import type { Extent } from "../../../src/backup/base/extent.js";
import { plan } from "../../../src/backup/pull/plan.js";
import { pull } from "../../../src/backup/pull/pull.js";
import { RequestWindow } from "../../../src/backup/pull/window.js";
import { OrderedWriter } from "../../../src/backup/take/ordered-writer.js";
import type { PieceSink, Stretch } from "../../../src/nbd/index.js";

const CLUSTER = 64 * 1024;
const geometry = { virtualSize: 50 * CLUSTER + 512, clusterSize: CLUSTER };

/** Every third extent of five clusters is zero by the map. */
async function* extents(): AsyncGenerator<readonly Extent[]> {
  for (let offset = 0, i = 0; offset < geometry.virtualSize; i += 1) {
    const length = Math.min(5 * CLUSTER, geometry.virtualSize - offset);
    yield [{ offset, length, state: i % 3 === 1 ? "zero" : "data" }];
    offset += length;
  }
}

function byteAt(offset: number): number {
  return (1 + Math.floor(offset / 512)) % 251;
}

/** Answers after any time, and counts what it was asked for. */
class Source {
  readBytes = 0;

  async readPieces(stretches: readonly Stretch[], sink: PieceSink): Promise<void> {
    await sleep(Math.random() * 5);
    for (const { offset, length } of stretches) {
      this.readBytes += length;
      sink.data(
        offset,
        Uint8Array.from({ length }, (_, i) => byteAt(offset + i)),
      );
    }
  }
}

async function pullTo(
  write: (bytes: Uint8Array) => Promise<void>,
  source = new Source(),
  signal?: AbortSignal,
): Promise<void> {
  const segmentBytes = 2 * CLUSTER;
  await using into = new OrderedWriter({
    sink: { write },
    geometry,
    segmentBytes,
    bufferBytes: 3 * segmentBytes,
    signal,
  });
  await pull({
    source,
    into,
    segments: plan(extents(), { geometry, segmentBytes }),
    window: new RequestWindow({ inFlight: 8 * segmentBytes }, segmentBytes),
    requestSizes: { readThrough: 0, mostRead: segmentBytes },
    signal,
  });
  expect(into.writtenBytes).toBe(geometry.virtualSize);
}

describe("a disk that is written in order", () => {
  it("gets all bytes from first to last, zeroes included, one write after the other", async () => {
    const got: Uint8Array[] = [];
    let isWriting = false;
    await pullTo(async (bytes) => {
      expect(isWriting).toBe(false);
      isWriting = true;
      await sleep(1);
      got.push(bytes.slice());
      isWriting = false;
    });
    const disk = Buffer.concat(got);
    expect(disk.length).toBe(geometry.virtualSize);
    const wrong = disk.findIndex((byte, at) => {
      const isZero = Math.floor(at / (5 * CLUSTER)) % 3 === 1;
      return byte !== (isZero ? 0 : byteAt(at));
    });
    expect(wrong).toBe(-1);
  });

  it("reads no more than its buffers hold while the sink takes nothing, and ends when it is aborted", async () => {
    const stop = new AbortController();
    const source = new Source();
    const pulling = pullTo(() => new Promise(() => {}), source, stop.signal);
    pulling.catch(() => {});
    await sleep(150);
    expect(source.readBytes).toBeGreaterThan(0);
    expect(source.readBytes).toBeLessThanOrEqual(6 * CLUSTER);
    stop.abort(new Error("enough"));
    await expect(pulling).rejects.toThrow("enough");
  });

  it("fails with the sink's error, whatever is being read", async () => {
    let written = 0;
    const pulling = pullTo(async (bytes) => {
      written += bytes.length;
      if (written > 12 * CLUSTER) throw new Error("the pipe is broken");
    });
    await expect(pulling).rejects.toThrow("the pipe is broken");
  });
});
