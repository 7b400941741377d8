import assert from "node:assert/strict";
import { type ClusterRun, clustersIn, type Geometry, type ResumableWriter } from "../image/image.js";
import { ImageFile } from "../image/image-file.js";
import { RunList } from "../image/run-list.js";
import {
  type Backing,
  createQcow2File,
  cutQcow2File,
  finishQcow2,
  type Qcow2WriterOptions,
} from "./finish.js";
import { assertFits } from "./layout.js";
import { usesOfRuns } from "./tables.js";

export type { Backing, Qcow2WriterOptions };

/**
 * Writes a qcow2 image (version 3) whose stored clusters are packed in guest order; `Layout` has the drawing.
 *
 * Until `finish` the file holds only data, and its first cluster is a hole: an unfinished file is not an
 * image. Slots that no run mentions stay unreferenced. If some clusters are defined in part, the tables have
 * extended entries (QEMU 5.2 or newer can read them), otherwise standard ones.
 */
export class Qcow2Writer implements ResumableWriter, AsyncDisposable {
  readonly geometry: Geometry;
  readonly format = "qcow2";
  readonly #file: ImageFile;
  readonly #backing: Backing | undefined;
  readonly #runs: RunList;

  private constructor(file: ImageFile, { geometry, backing }: Qcow2WriterOptions) {
    this.#file = file;
    this.geometry = geometry;
    this.#backing = backing;
    this.#runs = new RunList({ geometry, firstHostCluster: 1 });
  }

  /**
   * Creates the file, which must not exist.
   * @throws {UsageError} the geometry or the backing file's name is beyond what qcow2 can hold
   * @throws the file system's error, with `code`
   */
  static async create(path: string, options: Qcow2WriterOptions): Promise<Qcow2Writer> {
    return new Qcow2Writer(await createQcow2File(path, options), options);
  }

  /**
   * Opens a file that a run left which was killed.
   * @throws {DamageError} `E_IMAGE_FILE`: it is no regular file, or has other names too
   */
  static async reopen(path: string, options: Qcow2WriterOptions): Promise<Qcow2Writer> {
    return new Qcow2Writer(await ImageFile.openForWriting(path), options);
  }

  async settle({ sync }: { readonly sync: boolean }): Promise<void> {
    if (sync) await this.#file.datasync();
  }

  size(): Promise<number> {
    return this.#file.size();
  }

  async cutBehind(_position: number): Promise<number> {
    const end = this.#runs.hostEnd;
    await cutQcow2File(this.#file, end * this.geometry.clusterSize, this.geometry);
    return end - 1;
  }

  hostOffset(_cluster: number, rank: number): number {
    return (1 + rank) * this.geometry.clusterSize;
  }

  writeNow(hostOffset: number, data: Uint8Array): void {
    // Less work than a call of `assert`, here and in `addRun`. NaN would be the place behind the last write.
    if (!(hostOffset >= this.geometry.clusterSize)) assert.fail("data must not go into the header's cluster");
    this.#file.writeNow(data, hostOffset);
  }

  reach(hostEnd: number): void {
    this.#file.reach(hostEnd);
  }

  /** @throws {UsageError} a cluster is defined in part, and the disk is too large for such tables */
  addRun(run: ClusterRun): void {
    if (!(run.cluster + run.count <= clustersIn(this.geometry)))
      assert.fail("the run is behind the end of the disk");
    const alreadyExtended = this.#runs.hasPartial;
    this.#runs.append(run);
    if (this.#runs.hasPartial && !alreadyExtended) assertFits(this.geometry, true);
  }

  async finish(options: { readonly sync: boolean }): Promise<{ readonly storedBytes: number }> {
    const image = {
      geometry: this.geometry,
      backing: this.#backing,
      extended: this.#runs.hasPartial,
      dataEnd: this.#runs.hostEnd,
      runs: this.#runs,
      uses: usesOfRuns(this.#runs),
    };
    await finishQcow2(this.#file, image, options);
    return { storedBytes: this.#runs.dataBytes };
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
