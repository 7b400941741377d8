import { lstat } from "node:fs/promises";
import { join } from "node:path";
import { createDigester, type Digester, digestsOf } from "./digest.js";
import { DigestFileReader, type DigestRun } from "./digest-file.js";
import { DamageError } from "./errors.js";
import { sha256OfFile } from "./files.js";
import { type ClusterRun, type Geometry, type ImageReader, SUBCLUSTERS } from "./image/image.js";
import { Qcow2Reader } from "./image/qcow2-reader.js";
import { RawReader } from "./image/raw-reader.js";
import type { DiskManifest } from "./manifest.js";

/** A run of an image, with the digests of its clusters where the point has them. */
export type LayerRun = ClusterRun & { readonly digests: Buffer | undefined };

/** Something that is not as it was written. */
export interface Damage {
  readonly message: string;
  /** Where on the disk, in bytes; left out where it concerns the file as a whole. */
  readonly guestOffset?: number | undefined;
}

/** Told of every damage; it may throw to end the work, or note it and return to go on. */
export type OnDamage = (damage: Damage) => void;

const ZEROES = Buffer.alloc(1024 * 1024);

/** One disk of one point: an image file, held against the digest file beside it. */
export class Layer implements AsyncDisposable {
  readonly pointId: string;
  readonly disk: DiskManifest;
  readonly geometry: Geometry;
  readonly #image: ImageReader;
  readonly #digestFile: DigestFileReader | undefined;
  readonly #digester: Digester | undefined;

  private constructor(
    pointId: string,
    disk: DiskManifest,
    image: ImageReader,
    digestFile: DigestFileReader | undefined,
    digester: Digester | undefined,
  ) {
    this.pointId = pointId;
    this.disk = disk;
    this.geometry = { virtualSize: disk.virtualSize, clusterSize: disk.clusterSize };
    this.#image = image;
    this.#digestFile = digestFile;
    this.#digester = digester;
  }

  /**
   * @param folder the point's folder
   * @throws {DamageError} a file is missing, a link, or does not fit the manifest
   */
  static async open(folder: string, pointId: string, disk: DiskManifest): Promise<Layer> {
    const geometry = { virtualSize: disk.virtualSize, clusterSize: disk.clusterSize };
    const image = await openImage(folder, pointId, disk, geometry).catch((error: unknown) => {
      // We wrote it, so whatever it seems to use that we can't read is a flipped bit.
      if (hasCode(error, "E_QCOW2_UNSUPPORTED")) throw damage(pointId, disk, error.message);
      throw error;
    });
    let digestFile: DigestFileReader | undefined;
    try {
      checkGeometry(image.geometry, geometry, pointId, disk);
      if (disk.digests) {
        digestFile = await DigestFileReader.open(await plainFile(folder, disk.digests.file, pointId, disk));
        const { header } = digestFile;
        const fits =
          header.algorithm === disk.digests.algorithm &&
          header.complete === (disk.mode === "full") &&
          header.geometry.clusterSize === disk.clusterSize &&
          header.geometry.virtualSize === disk.virtualSize;
        if (!fits) throw damage(pointId, disk, "its digest file is another image's");
      }
      const digester = disk.digests ? await createDigester(disk.digests.algorithm) : undefined;
      return new Layer(pointId, disk, image, digestFile, digester);
    } catch (error) {
      await digestFile?.close();
      await image.close();
      throw error;
    }
  }

  /** Nothing lies below: what no run names reads as zeroes. */
  get complete(): boolean {
    return this.disk.mode === "full";
  }

  /**
   * What this layer defines, in guest order, as far as image and digest file agree; gaps are clean, or zero in a
   * complete layer. Where they disagree `onDamage` is told, and if it returns that stretch is left out.
   */
  async *runs(onDamage: OnDamage): AsyncGenerator<LayerRun> {
    if (!this.#digestFile || !this.disk.digests) {
      for await (const run of this.#image.runs()) yield { ...run, digests: undefined };
      return;
    }
    const digests = this.#digestFile.runs(this.disk.digests.sha256);
    if (this.disk.format === "raw") {
      // A raw file cannot tell what it defines; the digest file can. What it calls zero is looked at when it is read.
      for await (const run of digests) yield this.#inRawFile(run);
      return;
    }
    yield* this.#agreed(this.#image.runs(), digests, onDamage);
  }

  /**
   * Fills `target` from byte `offset` of the guest, which lies in the data of `run`, after the digests of the
   * clusters that it touches were compared.
   */
  async read(run: LayerRun, offset: number, target: Buffer, onDamage: OnDamage): Promise<void> {
    if (run.kind === "zero") throw new RangeError("a zero run has no bytes");
    const { clusterSize, virtualSize } = this.geometry;
    const first = Math.floor(offset / clusterSize);
    const end = Math.ceil((offset + target.length) / clusterSize);
    const start = first * clusterSize;
    const length = Math.min(end * clusterSize, virtualSize) - start;
    const whole = offset === start && target.length === length;
    const slots = whole ? target : Buffer.allocUnsafe(length);
    try {
      await this.#image.readHost(run.hostOffset + (first - run.cluster) * clusterSize, slots);
    } catch (error) {
      if (isUnreadable(error)) {
        onDamage({ message: `the file system cannot read it: ${error.message}`, guestOffset: offset });
        return;
      }
      if (!isOfOneCluster(error)) throw error;
      if (end - first === 1) {
        onDamage({ message: error.message, guestOffset: start });
        return;
      }
      // One of them can't be decompressed: each is judged by itself, and none hides another.
      for (let at = 0; at < length; at += clusterSize) {
        await this.read(run, start + at, slots.subarray(at, Math.min(at + clusterSize, length)), onDamage);
      }
      if (!whole) slots.copy(target, 0, offset - start, offset - start + target.length);
      return;
    }
    if (run.digests && this.#digester) this.#compare(run, first, end - first, slots, onDamage);
    if (!whole) slots.copy(target, 0, offset - start, offset - start + target.length);
  }

  /**
   * Looks at a stretch that should read as zeroes. In a qcow2 image its table says so, and was compared; in a raw
   * file only the bytes themselves can tell.
   */
  async expectZeroes(
    offset: number,
    length: number,
    onDamage: OnDamage,
    signal?: AbortSignal,
  ): Promise<void> {
    if (this.disk.format !== "raw") return;
    const end = Math.min(offset + length, this.geometry.virtualSize);
    for (let at = offset; at < end; at += ZEROES.length) {
      signal?.throwIfAborted();
      const bytes = Buffer.allocUnsafe(Math.min(ZEROES.length, end - at));
      await this.#image.readHost(at, bytes);
      if (!bytes.equals(ZEROES.subarray(0, bytes.length))) {
        onDamage({ message: "there is data where the point has zeroes", guestOffset: at });
      }
    }
  }

  async close(): Promise<void> {
    await this.#digestFile?.close();
    await this.#image.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #compare(run: LayerRun, cluster: number, count: number, slots: Buffer, onDamage: OnDamage): void {
    const digester = this.#digester;
    if (!digester || !run.digests || run.kind === "zero") return;
    const masked = run.kind === "partial" ? { dataMask: run.dataMask } : {};
    const found = digestsOf(digester, { kind: run.kind, cluster, count, ...masked }, slots, this.geometry);
    const expected = run.digests.subarray((cluster - run.cluster) * digester.size).subarray(0, found.length);
    if (found.equals(expected)) return;
    for (let i = 0; i < count; i += 1) {
      const at = i * digester.size;
      if (found.compare(expected, at, at + digester.size, at, at + digester.size) === 0) continue;
      onDamage({
        message: "the data is not what was backed up: its digest differs",
        guestOffset: (cluster + i) * this.geometry.clusterSize,
      });
    }
  }

  #inRawFile(run: DigestRun): LayerRun {
    const hostOffset = run.cluster * this.geometry.clusterSize;
    if (run.kind === "zero") return { ...run, digests: undefined };
    return { ...run, hostOffset };
  }

  /** Walks image and digest file side by side. */
  async *#agreed(
    images: AsyncIterable<ClusterRun>,
    digestRuns: AsyncIterable<DigestRun>,
    onDamage: OnDamage,
  ): AsyncGenerator<LayerRun> {
    const image = new RunCursor(images);
    const digest = new RunCursor(digestRuns);
    const size = this.#digester?.size ?? 0;
    for (;;) {
      const has = await image.current();
      const should = await digest.current();
      if (!has && !should) return;
      const hasAt = has ? image.cluster : Number.POSITIVE_INFINITY;
      const shouldAt = should ? digest.cluster : Number.POSITIVE_INFINITY;
      const guestOffset = Math.min(hasAt, shouldAt) * this.geometry.clusterSize;
      if (!should || (has && hasAt < shouldAt)) {
        const harmless = this.complete && has?.kind === "zero";
        if (!harmless)
          onDamage({ message: "the image defines a cluster that the point left out", guestOffset });
        image.skip(Math.min(image.remaining, shouldAt - hasAt));
      } else if (!has || shouldAt < hasAt) {
        onDamage({ message: `the image has lost a cluster of ${should.kind}`, guestOffset });
        digest.skip(Math.min(digest.remaining, hasAt - shouldAt));
      } else {
        const count = Math.min(image.remaining, digest.remaining);
        const start = digest.cluster - should.cluster;
        if (isSameKind(has, should)) yield this.#joined(has, image.cluster, count, should, start, size);
        else {
          const message = `the image's table says ${has.kind} where the point has ${should.kind}`;
          onDamage({ message, guestOffset });
        }
        image.skip(count);
        digest.skip(count);
      }
    }
  }

  #joined(
    has: ClusterRun,
    cluster: number,
    count: number,
    should: DigestRun,
    start: number,
    digestSize: number,
  ): LayerRun {
    if (has.kind === "partial" || should.kind === "partial") {
      return { ...has, digests: should.kind === "partial" ? should.digests : undefined };
    }
    if (has.kind === "zero" || should.kind === "zero")
      return { kind: "zero", cluster, count, digests: undefined };
    return {
      kind: "data",
      cluster,
      count,
      hostOffset: has.hostOffset + (cluster - has.cluster) * this.geometry.clusterSize,
      digests: should.digests.subarray(start * digestSize, (start + count) * digestSize),
    };
  }
}

/** A stream of runs that can be consumed cluster by cluster. */
class RunCursor<T extends { readonly cluster: number; readonly count: number }> {
  readonly #runs: AsyncIterator<T>;
  #current: T | undefined;
  #done = 0;

  constructor(runs: AsyncIterable<T>) {
    this.#runs = runs[Symbol.asyncIterator]();
  }

  async current(): Promise<T | undefined> {
    if (this.#current && this.#done < this.#current.count) return this.#current;
    const next = await this.#runs.next();
    this.#current = next.done ? undefined : next.value;
    this.#done = 0;
    return this.#current;
  }

  /** The first cluster that was not skipped yet. */
  get cluster(): number {
    return (this.#current?.cluster ?? 0) + this.#done;
  }

  get remaining(): number {
    return (this.#current?.count ?? 0) - this.#done;
  }

  skip(count: number): void {
    this.#done += count;
  }
}

function isSameKind(has: ClusterRun, should: DigestRun): boolean {
  if (has.kind === "partial" && should.kind === "partial") {
    return has.dataMask === should.dataMask && has.zeroMask === should.zeroMask;
  }
  return has.kind === should.kind;
}

async function openImage(
  folder: string,
  pointId: string,
  disk: DiskManifest,
  geometry: Geometry,
): Promise<ImageReader> {
  const path = await plainFile(folder, disk.file, pointId, disk);
  switch (disk.format) {
    case "qcow2":
      return await Qcow2Reader.open(path);
    case "raw": {
      if (!disk.map) return await RawReader.open(path, { geometry });
      const mapPath = await plainFile(folder, disk.map.file, pointId, disk);
      if ((await sha256OfFile(mapPath)) !== disk.map.sha256) {
        throw damage(pointId, disk, `the SHA-256 of ${mapPath} is not the one in the manifest`);
      }
      return await RawReader.open(path, { geometry, mapPath });
    }
    default:
      return disk.format satisfies never;
  }
}

/** A qcow2 image's own size is the disk's, rounded up to a sector. */
function checkGeometry(found: Geometry, expected: Geometry, pointId: string, disk: DiskManifest): void {
  const size = disk.format === "qcow2" ? Math.ceil(expected.virtualSize / 512) * 512 : expected.virtualSize;
  if (found.virtualSize !== size || found.clusterSize !== expected.clusterSize) {
    const what = `${found.virtualSize} bytes in clusters of ${found.clusterSize}, not ${size} in clusters of ${expected.clusterSize}`;
    throw damage(pointId, disk, `the image's header says ${what}`);
  }
  if (expected.clusterSize % SUBCLUSTERS !== 0)
    throw damage(pointId, disk, "its cluster size makes no sense");
}

/** Whether the damage is that of a single cluster, and says nothing of the others. */
function isOfOneCluster(error: unknown): error is DamageError {
  return error instanceof DamageError && error.code === "E_QCOW2_ENTRY";
}

/** What a failing medium says. */
export function isUnreadable(error: unknown): error is Error {
  return ["EIO", "EUCLEAN", "EBADMSG"].some((code) => hasCode(error, code));
}

function hasCode(error: unknown, code: string): error is Error {
  return error instanceof Error && (error as NodeJS.ErrnoException).code === code;
}

/** Never follows a link: a point's files lie in its folder. */
async function plainFile(folder: string, name: string, pointId: string, disk: DiskManifest): Promise<string> {
  const path = join(folder, name);
  const found = await lstat(path).catch(() => undefined);
  if (!found) throw damage(pointId, disk, `the file ${path} is missing`);
  if (!found.isFile()) throw damage(pointId, disk, `${path} is not a plain file`);
  return path;
}

/** A damage of a layer as an error, which names the disk and the point. */
export function damage(pointId: string, disk: DiskManifest, what: string, guestOffset?: number): DamageError {
  const where = guestOffset === undefined ? "" : ` at guest offset ${guestOffset}`;
  return new DamageError("E_DAMAGED", `disk ${disk.name} of point ${pointId} is damaged${where}: ${what}`, {
    details: { point: pointId, disk: disk.name, ...(guestOffset === undefined ? {} : { guestOffset }) },
  });
}
