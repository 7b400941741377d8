import { createDigester, type DigestAlgorithm } from "../digest/digest.js";
import type { Geometry, ImageReader } from "../image/image.js";
import { Qcow2Reader } from "../qcow2/reader.js";
import { CheckedImage } from "./checked-image.js";

/** An image file that a thread opens for itself. */
export interface StoredImage {
  readonly path: string;
  readonly format: ImageReader["format"];
  /** The disk's. */
  readonly geometry: Geometry;
  /** Left out where there are no digests. */
  readonly algorithm: DigestAlgorithm | undefined;
}

/** More of a long chain are closed and opened again: every thread has its own, and descriptors are limited. */
const MOST_OPEN = 64;

/** The images that a thread reads, and waits for meanwhile, each opened when it is first asked for. */
export class OpenImages {
  /** By path, the one that was asked for longest ago first. */
  readonly #open = new Map<string, Promise<CheckedImage>>();

  /**
   * The image is used until the next one is asked for, and no longer.
   * @throws {DamageError} it can't be opened
   */
  async get(image: StoredImage): Promise<CheckedImage> {
    const known = this.#open.get(image.path);
    this.#open.delete(image.path);
    const opened = known ?? open(image);
    this.#open.set(image.path, opened);
    const [oldest] = this.#open.keys();
    if (this.#open.size > MOST_OPEN && oldest !== undefined) await this.close(oldest);
    return await opened;
  }

  async closeAll(): Promise<void> {
    for (const path of [...this.#open.keys()]) await this.close(path);
  }

  /** Closes the image at `path`, if it is open. */
  async close(path: string): Promise<void> {
    const image = this.#open.get(path);
    this.#open.delete(path);
    await image?.then((opened) => opened.close()).catch(() => undefined);
  }
}

async function open(image: StoredImage): Promise<CheckedImage> {
  const { geometry, algorithm } = image;
  const digester = algorithm === undefined ? undefined : await createDigester(algorithm);
  return new CheckedImage(await readerOf(image), geometry, digester);
}

async function readerOf({ path, format, geometry }: StoredImage): Promise<ImageReader> {
  switch (format) {
    case "qcow2":
      return await Qcow2Reader.open(path, { blocking: true });
    case "raw": {
      // It comes with all that reads maps, which most threads don't need.
      const { RawReader } = await import("../image/raw-reader.js");
      return await RawReader.open(path, { blocking: true, geometry });
    }
    default:
      return format satisfies never;
  }
}
