/** An image in memory, and a helper that cuts stretches into pieces. */

import {
  type ClusterRun,
  type Geometry,
  type ImageWriter,
  maskStretches,
} from "../../src/backup/image/image.js";
import type { Stretch } from "../../src/nbd/index.js";

/** Has slots packed in the order of their rank after one for the header, like a qcow2 image. */
export class MemoryImage implements ImageWriter {
  readonly geometry: Geometry;
  readonly format = "qcow2";
  readonly writes: { readonly hostOffset: number; readonly length: number }[] = [];
  readonly runs: ClusterRun[] = [];
  bytes = Buffer.alloc(0);

  constructor(geometry: Geometry) {
    this.geometry = geometry;
  }

  hostOffset(_cluster: number, rank: number): number {
    return (1 + rank) * this.geometry.clusterSize;
  }

  writeNow(hostOffset: number, data: Uint8Array): void {
    this.reach(hostOffset + data.length);
    this.bytes.set(data, hostOffset);
    this.writes.push({ hostOffset, length: data.length });
  }

  reach(hostEnd: number): void {
    const missing = hostEnd - this.bytes.length;
    if (missing > 0) this.bytes = Buffer.concat([this.bytes, Buffer.alloc(missing)]);
  }

  addRun(run: ClusterRun): void {
    this.runs.push(run);
  }

  async finish(): Promise<{ storedBytes: number }> {
    return { storedBytes: 0 };
  }

  async close(): Promise<void> {}

  /** Lays the runs over `below`. */
  over(below: Uint8Array, runs: readonly ClusterRun[] = this.runs): Buffer {
    const { clusterSize, virtualSize } = this.geometry;
    const disk = Buffer.from(below);
    const stored = (at: number, host: number, length: number) => {
      const end = Math.min(at + length, virtualSize);
      disk.fill(0, at, end);
      disk.set(this.bytes.subarray(host, host + end - at), at);
    };
    for (const run of runs) {
      const start = run.cluster * clusterSize;
      if (run.kind === "zero") disk.fill(0, start, Math.min(start + run.count * clusterSize, virtualSize));
      else if (run.kind === "data") stored(start, run.hostOffset, run.count * clusterSize);
      else {
        for (const { offset, length } of maskStretches(run.zeroMask, clusterSize)) {
          disk.fill(0, Math.min(start + offset, virtualSize), Math.min(start + offset + length, virtualSize));
        }
        for (const { offset, length } of maskStretches(run.dataMask, clusterSize)) {
          if (start + offset < virtualSize) stored(start + offset, run.hostOffset + offset, length);
        }
      }
    }
    return disk;
  }
}

/** Cuts a stretch into pieces of the given sizes, used in turn. */
export function inPiecesOf({ offset, length }: Stretch, sizes: readonly number[]): Stretch[] {
  const pieces: Stretch[] = [];
  for (let done = 0, count = 0; done < length; count += 1) {
    const size = Math.min(sizes[count % sizes.length] ?? length, length - done);
    pieces.push({ offset: offset + done, length: size });
    done += size;
  }
  return pieces;
}
