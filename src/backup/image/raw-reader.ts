import assert from "node:assert/strict";
import { DamageError } from "../base/errors.js";
import { type ClusterRun, clustersIn, type Geometry, type ImageReader } from "./image.js";
import type { ReadOptions } from "./image-file.js";
import { damagedMap, parseMap, runsOfExtents } from "./raw-map-reader.js";
import { type FilePlace, openPlace, type ReadableFile } from "./readable-file.js";

interface RawReaderOptions extends ReadOptions {
  /** Not recorded in the file, which must be at least as long as the virtual size. */
  readonly geometry: Geometry;
  /** For an increment, the map of what the file defines. Without it, the file defines the whole disk. */
  readonly mapPath?: FilePlace | undefined;
}

const MAP_PIECE_BYTES = 64 * 1024;
/** Characters. An extent's line takes about a hundred. */
const MAX_LINE = 1024;

/** Reads a raw image: guest offsets are host offsets. */
export class RawReader implements ImageReader, AsyncDisposable {
  readonly geometry: Geometry;
  readonly format = "raw";
  readonly #file: ReadableFile;
  readonly #mapPath: FilePlace | undefined;

  private constructor(file: ReadableFile, { geometry, mapPath }: RawReaderOptions) {
    this.geometry = geometry;
    this.#file = file;
    this.#mapPath = mapPath;
  }

  /**
   * @throws {DamageError} the file is shorter than the disk
   * @throws the file system's error
   */
  static async open(place: FilePlace, options: RawReaderOptions): Promise<RawReader> {
    const file = await openPlace(place, options);
    const { virtualSize } = options.geometry;
    const size = await file.size();
    if (size >= virtualSize) return new RawReader(file, options);
    await file.close();
    throw new DamageError("E_IMAGE_TRUNCATED", `${file.path} has ${size} bytes, its disk ${virtualSize}`, {
      details: { path: file.path, size, virtualSize },
    });
  }

  async *runs(): AsyncGenerator<ClusterRun> {
    if (this.#mapPath !== undefined) {
      const map = await openPlace(this.#mapPath);
      try {
        yield* runsOfExtents(parseMap(lines(map), map.path), this.geometry, map.path);
      } finally {
        await map.close();
      }
      return;
    }
    const count = clustersIn(this.geometry);
    if (count > 0) yield { kind: "data", cluster: 0, count, hostOffset: 0 };
  }

  /** The last cluster continues with zeroes behind the end of the disk. */
  async readHost(hostOffset: number, target: Uint8Array): Promise<void> {
    const { clusterSize, virtualSize } = this.geometry;
    assert(hostOffset + target.length <= clustersIn(this.geometry) * clusterSize, "this is behind the disk");
    await this.#file.fill(target, hostOffset, virtualSize);
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/**
 * The lines of a text file, one after the other. The file isn't trusted, so the length of a line is limited.
 */
async function* lines(file: ReadableFile): AsyncGenerator<string> {
  const piece = Buffer.allocUnsafe(MAP_PIECE_BYTES);
  let rest = "";
  for (let position = 0, bytes = piece.length; bytes === piece.length; position += bytes) {
    bytes = await file.read(piece, position);
    const complete = (rest + piece.toString("latin1", 0, bytes)).split("\n");
    rest = complete.pop() ?? "";
    if (rest.length > MAX_LINE)
      throw damagedMap(file.path, `near byte ${position} is a line that never ends`);
    yield* complete;
  }
  yield rest;
}
