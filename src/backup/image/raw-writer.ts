import assert from "node:assert/strict";
import { type ClusterRun, clustersIn, type Geometry, type ResumableWriter } from "./image.js";
import { Appender, ImageFile } from "./image-file.js";
import { extentsOfRuns, mapText } from "./raw-map.js";
import { RunList } from "./run-list.js";

interface RawWriterOptions {
  readonly geometry: Geometry;
  /**
   * For an increment, the path of the map that describes the runs. Without it, the image is the whole disk.
   */
  readonly mapPath?: string | undefined;
}

/**
 * Writes a raw image: a sparse file of exactly the virtual size, data at its guest offset, everything else a
 * hole.
 *
 * A raw file alone can't distinguish clean from zero, so an increment has a map beside it (`raw-map.ts`
 * describes it).
 */
export class RawWriter implements ResumableWriter, AsyncDisposable {
  readonly geometry: Geometry;
  readonly format = "raw";
  readonly #file: ImageFile;
  readonly #map: ImageFile | undefined;
  readonly #runs: RunList;

  private constructor(file: ImageFile, map: ImageFile | undefined, geometry: Geometry) {
    this.#file = file;
    this.#map = map;
    this.geometry = geometry;
    this.#runs = new RunList({ geometry, firstHostCluster: 0 });
  }

  /**
   * Creates the file and the map. Neither may exist already.
   * @throws the file system's error, with `code`
   */
  static async create(path: string, { geometry, mapPath }: RawWriterOptions): Promise<RawWriter> {
    const file = await ImageFile.create(path);
    try {
      await file.truncate(geometry.virtualSize);
      const map = mapPath === undefined ? undefined : await ImageFile.create(mapPath);
      return new RawWriter(file, map, geometry);
    } catch (error) {
      await file.discard(path);
      throw error;
    }
  }

  /**
   * Opens a file that a run left which was killed. The map must not exist.
   * @throws {DamageError} `E_IMAGE_FILE`: it is no regular file, or has other names too
   * @throws the file system's error, with `code`
   */
  static async reopen(path: string, { geometry, mapPath }: RawWriterOptions): Promise<RawWriter> {
    const file = await ImageFile.openForWriting(path);
    try {
      const map = mapPath === undefined ? undefined : await ImageFile.create(mapPath);
      return new RawWriter(file, map, geometry);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  async settle({ sync }: { readonly sync: boolean }): Promise<void> {
    if (sync) await this.#file.datasync();
  }

  size(): Promise<number> {
    return this.#file.size();
  }

  async cutBehind(position: number): Promise<number> {
    const { virtualSize, clusterSize } = this.geometry;
    await this.#file.truncate(Math.min(position * clusterSize, virtualSize));
    await this.#file.truncate(virtualSize);
    return 0;
  }

  hostOffset(cluster: number, _rank: number): number {
    return cluster * this.geometry.clusterSize;
  }

  writeNow(hostOffset: number, data: Uint8Array): void {
    // Less work than a call of `assert`: once for each write.
    if (!(hostOffset + data.length <= this.geometry.virtualSize))
      assert.fail("data must not go past the end of the disk");
    this.#file.writeNow(data, hostOffset);
  }

  reach(hostEnd: number): void {
    this.#file.reach(hostEnd);
  }

  addRun(run: ClusterRun): void {
    // Less work than a call of `assert`, as in `writeNow`: once for each run.
    if (!(run.cluster + run.count <= clustersIn(this.geometry)))
      assert.fail("the run is behind the end of the disk");
    this.#runs.append(run);
  }

  async finish({ sync }: { readonly sync: boolean }): Promise<{ readonly storedBytes: number }> {
    if (sync) await this.#file.sync();
    if (this.#map) {
      await writeMap(this.#map, this.#runs, this.geometry);
      if (sync) await this.#map.sync();
    }
    return { storedBytes: this.#runs.dataBytes };
  }

  async close(): Promise<void> {
    await Promise.all([this.#file.close(), this.#map?.close()]);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** Fills a new file with the map of what an increment defines. */
export async function writeMap(map: ImageFile, runs: RunList, geometry: Geometry): Promise<void> {
  const out = new Appender(map, 0);
  for (const text of mapText(extentsOfRuns(runs, geometry))) await out.append(Buffer.from(text));
  await out.flush();
}
