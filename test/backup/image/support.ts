import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { execa } from "execa";
import fc from "fast-check";
import { onTestFinished } from "vitest";
import {
  ALL_SUBCLUSTERS,
  type ClusterRun,
  type Geometry,
  type ImageReader,
  type ImageWriter,
  maskStretches,
} from "../../../src/backup/image/image.js";
import { qemuImg } from "../../support/qemu-nbd.js";

export const KiB = 1024;
export const MiB = 1024 * KiB;
export const GiB = 1024 * MiB;
export const TiB = 1024 * GiB;

/** A folder that is removed after the test. */
export async function scratch(): Promise<(name: string) => string> {
  const folder = await mkdtemp(path.join(tmpdir(), "image-test-"));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  return (name) => path.join(folder, name);
}

async function qemuCheck(file: string): Promise<{ sound: boolean; report: string }> {
  const { stdout, stderr, exitCode } = await execa("qemu-img", ["check", "-f", "qcow2", file], {
    reject: false,
  });
  return { sound: exitCode === 0, report: stdout + stderr };
}

/** From best to worst. */
export const VERDICTS = ["sound", "leak", "damage"] as const;
export type Verdict = (typeof VERDICTS)[number];

/** The verdict of `qemu-img check`; an image that it can't open is damaged. */
export async function qemuVerdict(file: string): Promise<Verdict> {
  const { stdout, exitCode } = await execa("qemu-img", ["check", "--output=json", "-f", "qcow2", file], {
    reject: false,
  });
  if (exitCode === 1) return "damage";
  const report = JSON.parse(stdout) as Partial<Record<"corruptions" | "check-errors" | "leaks", number>>;
  if ((report.corruptions ?? 0) > 0 || (report["check-errors"] ?? 0) > 0) return "damage";
  return (report.leaks ?? 0) > 0 ? "leak" : "sound";
}

/** Whether `qemu-img check` finds neither errors nor leaks. */
export async function isSound(file: string): Promise<boolean> {
  return (await qemuCheck(file)).sound;
}

export async function assertSound(file: string): Promise<void> {
  const { sound, report } = await qemuCheck(file);
  if (!sound) throw new Error(`qemu-img check ${file}: ${report}`);
}

/** What the guest sees in an image and its backing images, as QEMU reads them. */
export async function guestBytes(file: string, format: "qcow2" | "raw" = "qcow2"): Promise<Buffer> {
  const out = `${file}.guest`;
  await qemuImg("convert", "-f", format, "-O", "raw", file, out);
  const bytes = await readFile(out);
  await rm(out);
  return bytes;
}

/**
 * What a test wants a cluster to be. An "unused" cluster is read, found to be zeroes and dropped: its slot
 * stays a hole.
 */
export type Wish =
  | "clean"
  | "zero"
  | "data"
  | "unused"
  | { readonly dataMask: number; readonly zeroMask: number };

const anyMask = fc.integer({ min: 0, max: ALL_SUBCLUSTERS });
const partialWish = fc
  .tuple(anyMask, anyMask)
  .map(([a, b]) => ({ dataMask: a, zeroMask: (b & ~a) >>> 0 }))
  // A full mask would make the cluster clean, data or zero as a whole, and a reader reports it as such.
  .filter(({ dataMask, zeroMask }) => dataMask !== 0 || zeroMask !== 0)
  .filter(({ dataMask, zeroMask }) => dataMask !== ALL_SUBCLUSTERS && zeroMask !== ALL_SUBCLUSTERS);
export const wholeWish = fc.constantFrom<Wish>("clean", "zero", "data", "unused");
export const anyWish = fc.oneof({ weight: 4, arbitrary: wholeWish }, partialWish);

/** Unique content: every cluster of every seed differs, and no byte is zero. */
export function fillCluster(seed: number, cluster: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  let state = (Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(cluster + 1, 0x85ebca6b)) | 1;
  for (let at = 0; at < length; at += 1) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes[at] = (state & 0xff) | 1;
  }
  return bytes;
}

function masksOf(wish: Wish): { dataMask: number; zeroMask: number } {
  switch (wish) {
    case "clean":
      return { dataMask: 0, zeroMask: 0 };
    case "zero":
    case "unused":
      return { dataMask: 0, zeroMask: ALL_SUBCLUSTERS };
    case "data":
      return { dataMask: ALL_SUBCLUSTERS, zeroMask: 0 };
    default:
      return wish;
  }
}

/** Lays what the wishes define over `below`, the bytes of the disk so far. */
export function expectedBytes(
  wishes: readonly Wish[],
  geometry: Geometry,
  seed: number,
  below: Buffer,
): Buffer {
  const disk = Buffer.alloc(geometry.virtualSize);
  below.copy(disk);
  for (const [cluster, wish] of wishes.entries()) {
    const { dataMask, zeroMask } = masksOf(wish);
    const start = cluster * geometry.clusterSize;
    const content = fillCluster(seed, cluster, geometry.clusterSize);
    for (const { offset, length } of maskStretches(dataMask, geometry.clusterSize)) {
      content.copy(disk, start + offset, offset, offset + length);
    }
    for (const { offset, length } of maskStretches(zeroMask, geometry.clusterSize)) {
      disk.fill(0, start + offset, Math.min(start + offset + length, disk.length));
    }
  }
  return disk;
}

/**
 * Plays the part of a pull: allocates slots in guest order, writes from the last to the first, adds the runs.
 */
export function store(writer: ImageWriter, wishes: readonly Wish[], seed = 0): void {
  const { clusterSize, virtualSize } = writer.geometry;
  const runs: ClusterRun[] = [];
  let rank = 0;
  for (const [cluster, wish] of wishes.entries()) {
    const { dataMask, zeroMask } = masksOf(wish);
    const hostOffset = dataMask === 0 ? 0 : writer.hostOffset(cluster, rank);
    if (dataMask !== 0 || wish === "unused") rank += 1;
    if (wish === "data") runs.push({ kind: "data", cluster, count: 1, hostOffset });
    else if (wish === "zero" || wish === "unused") runs.push({ kind: "zero", cluster, count: 1 });
    else if (wish !== "clean")
      runs.push({ kind: "partial", cluster, count: 1, hostOffset, dataMask, zeroMask });
  }
  for (const run of runs.toReversed()) {
    if (run.kind === "zero" || masksOfRun(run) === 0) continue;
    const content = fillCluster(seed, run.cluster, clusterSize);
    const inside = Math.min(clusterSize, virtualSize - run.cluster * clusterSize);
    writer.writeNow(run.hostOffset, content.subarray(0, inside));
  }
  for (const run of runs) writer.addRun(run);
}

function masksOfRun(run: ClusterRun): number {
  return run.kind === "partial" ? run.dataMask : ALL_SUBCLUSTERS;
}

export async function finished(writer: Pick<ImageWriter, "finish" | "close">): Promise<number> {
  const { storedBytes } = await writer.finish({ sync: false });
  await writer.close();
  return storedBytes;
}

export async function collect<T>(values: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = [];
  for await (const value of values) list.push(value);
  return list;
}

/** What a reader reports, cluster by cluster, as wishes. */
export async function wishesOf(reader: ImageReader): Promise<Wish[]> {
  const { virtualSize, clusterSize } = reader.geometry;
  const wishes = new Array<Wish>(Math.ceil(virtualSize / clusterSize)).fill("clean");
  for await (const run of reader.runs()) {
    const { dataMask, zeroMask } = run.kind === "partial" ? run : { dataMask: 0, zeroMask: 0 };
    wishes.fill(
      run.kind === "partial" ? { dataMask, zeroMask } : run.kind,
      run.cluster,
      run.cluster + run.count,
    );
  }
  return wishes;
}

/** The disk as a reader shows it, laid over `below`. */
export async function bytesOf(reader: ImageReader, below: Buffer): Promise<Buffer> {
  const { virtualSize, clusterSize } = reader.geometry;
  const disk = Buffer.alloc(Math.ceil(virtualSize / clusterSize) * clusterSize);
  below.copy(disk);
  for await (const run of reader.runs()) {
    const start = run.cluster * clusterSize;
    const length = run.count * clusterSize;
    if (run.kind === "zero") disk.fill(0, start, start + length);
    else if (run.kind === "data") await reader.readHost(run.hostOffset, disk.subarray(start, start + length));
    else {
      for (const part of maskStretches(run.zeroMask, clusterSize)) {
        disk.fill(0, start + part.offset, start + part.offset + part.length);
      }
      for (const part of maskStretches(run.dataMask, clusterSize)) {
        const target = disk.subarray(start + part.offset, start + part.offset + part.length);
        await reader.readHost(run.hostOffset + part.offset, target);
      }
    }
  }
  return disk.subarray(0, virtualSize);
}
