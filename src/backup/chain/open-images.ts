import { setMaxListeners } from "node:events";
import type { DigestAlgorithm } from "../digest/algorithms.js";
import { createDigester } from "../digest/digest.js";
import type { Geometry, ImageReader } from "../image/image.js";
import { type FilePlace, pathOf, type RemoteFile } from "../image/readable-file.js";
import { Qcow2Reader } from "../qcow2/reader.js";
import { CheckedImage } from "./checked-image.js";

/** What a thread needs to open an image. It can be sent to the thread in a message, unless it is `remote`. */
export interface StoredImage {
  /** No two images have the same. */
  readonly path: string;
  /** Undefined if the image is at `path` of this machine. */
  readonly remote?: RemoteFile | undefined;
  readonly format: ImageReader["format"];
  /** The disk's; a qcow2 header has its size rounded up to a sector. */
  readonly geometry: Geometry;
  /** Undefined if the image has no digests. */
  readonly algorithm: DigestAlgorithm | undefined;
}

/**
 * The most images that a thread has open, but for those in use. In a longer chain, images are closed and
 * opened again, because every thread has its own descriptors and their number is limited.
 */
const MOST_OPEN = 64;

interface Opened {
  readonly image: Promise<CheckedImage>;
  users: number;
}

/**
 * The images that a thread has open. Each is opened at its first `get`, and read synchronously if it is on
 * this machine: the thread waits meanwhile.
 */
export class OpenImages {
  /** By path, the least recently used first. */
  readonly #open = new Map<string, Opened>();
  /** Ends reads from elsewhere, which may take as long as a store is waited for. */
  readonly #closing = new AbortController();

  constructor() {
    // Each read listens.
    setMaxListeners(0, this.#closing.signal);
  }

  /**
   * An open image, which stays open until the caller disposes of the result.
   * @throws {DamageError} the image is damaged
   * @throws {BackupError} the image uses features that can't be read
   * @throws the file system's error
   */
  async get(image: StoredImage): Promise<{ readonly image: CheckedImage } & Disposable> {
    const known = this.#open.get(image.path);
    this.#open.delete(image.path);
    const opened = known ?? { image: open(image, this.#closing.signal), users: 0 };
    this.#open.set(image.path, opened);
    const release = (): void => {
      opened.users -= 1;
    };
    opened.users += 1;
    try {
      await this.#closeIdle();
      return { image: await opened.image, [Symbol.dispose]: release };
    } catch (error) {
      release();
      throw error;
    }
  }

  /** Ends reads from elsewhere, now and later. */
  stop(): void {
    this.#closing.abort();
  }

  /** Ends all use. */
  async closeAll(): Promise<void> {
    for (const path of [...this.#open.keys()]) await this.close(path);
  }

  /** Closes the image at `path`, if it is open. Nobody may use it. */
  async close(path: string): Promise<void> {
    const opened = this.#open.get(path);
    this.#open.delete(path);
    await opened?.image.then((image) => image.close()).catch(() => undefined);
  }

  async #closeIdle(): Promise<void> {
    for (const [path, { users }] of [...this.#open]) {
      if (this.#open.size <= MOST_OPEN) return;
      if (users === 0) await this.close(path);
    }
  }
}

async function open(image: StoredImage, signal: AbortSignal): Promise<CheckedImage> {
  const { geometry, algorithm } = image;
  const digester = algorithm === undefined ? undefined : await createDigester(algorithm);
  return new CheckedImage(await readerOf(image, signal), geometry, digester);
}

/** Where an image is, as {@link StoredImage} tells it. */
export function storedAt(place: FilePlace): Pick<StoredImage, "path" | "remote"> {
  return { path: pathOf(place), remote: typeof place === "string" ? undefined : place };
}

async function readerOf(
  { path, remote, format, geometry }: StoredImage,
  closing: AbortSignal,
): Promise<ImageReader> {
  const place = remote ?? path;
  // A read from elsewhere can't be waited for.
  const blocking = remote === undefined;
  const signal = blocking ? undefined : closing;
  switch (format) {
    case "qcow2":
      return await Qcow2Reader.open(place, { blocking, signal });
    case "raw": {
      // Imported here because it brings the code that reads maps, which most threads don't need.
      const { RawReader } = await import("../image/raw-reader.js");
      return await RawReader.open(place, { blocking, signal, geometry });
    }
    default:
      return format satisfies never;
  }
}
