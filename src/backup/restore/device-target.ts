import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { PreconditionError, UsageError } from "../base/errors.js";
import { blockDeviceAt, kernelFolderOf } from "../host/block-device.js";
import { writersOf } from "../host/device-users.js";
import { isMissing } from "../host/durable-files.js";
import { ImageFile } from "../image/image-file.js";
import { type BlockTarget, zeroByHand } from "./block-target.js";

/** The kernel gives the sizes of devices in sectors of this size, whatever their block size is. */
const SECTOR = 512;

/**
 * A block device. Node can't ask it to zero a stretch (`BLKZEROOUT`), so zeroes are written where needed.
 * Writes go through the page cache, which turns small ones into whole blocks.
 */
export class DeviceTarget implements BlockTarget {
  readonly name: string;
  readonly size: number;
  readonly preferredBlock = undefined;
  /** The file behind a loop device; undefined for other devices. */
  readonly backingFile: string | undefined;
  readonly #file: ImageFile;
  #touched = false;

  private constructor(name: string, size: number, backingFile: string | undefined, file: ImageFile) {
    this.name = name;
    this.size = size;
    this.backingFile = backingFile;
    this.#file = file;
  }

  /**
   * Opens the device exclusively, so that the system can't begin to use it meanwhile (mount, swap, volume).
   * Programs that have it open for writing but not exclusively, such as a QEMU, are noticed only before.
   * @throws {UsageError} `E_TARGET`: it is not a block device
   * @throws {PreconditionError} `E_TARGET_IN_USE`: it is mounted or otherwise in use, for example by a guest;
   *   `E_TARGET_READ_ONLY`
   * @throws the file system's error, with `code`
   */
  static async open(path: string): Promise<DeviceTarget> {
    const device = await blockDeviceAt(path);
    if (!device) throw new UsageError("E_TARGET", `${path} is not a block device`, { details: { path } });
    const folder = kernelFolderOf(device.number);
    if ((await readNumber(folder, "ro")) === 1) {
      throw new PreconditionError("E_TARGET_READ_ONLY", `${path} is read-only: nothing was written`, {
        details: { target: path },
      });
    }
    const [writer] = await writersOf([device]);
    if (writer !== undefined) {
      const message = `${path} is in use and was not touched: ${writer}. Shut that guest down, end what uses the device, or name another one`;
      throw new PreconditionError("E_TARGET_IN_USE", message, { details: { target: path } });
    }
    const file = await ImageFile.openDevice(path).catch((cause: unknown) => {
      if ((cause as NodeJS.ErrnoException).code !== "EBUSY") throw cause;
      const message = `${path} is in use (mounted, swap, or part of a volume) and was not touched: unmount it, or name another device`;
      throw new PreconditionError("E_TARGET_IN_USE", message, { cause, details: { target: path } });
    });
    try {
      const size = (await readNumber(folder, "size")) * SECTOR;
      return new DeviceTarget(path, size, await backingFileOf(folder), file);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  get writable(): number {
    return this.size;
  }

  get touched(): boolean {
    return this.#touched;
  }

  async write(offset: number, data: Uint8Array, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    this.#touched = true;
    await this.#file.write(data, offset);
  }

  async zero(offset: number, length: number, signal: AbortSignal): Promise<void> {
    const access = {
      read: (at: number, target: Uint8Array) => this.#file.fill(target, at, this.size),
      write: (at: number, data: Uint8Array) => this.write(at, data, signal),
    };
    await zeroByHand(access, offset, length, signal);
  }

  async flush(): Promise<void> {
    await this.#file.sync();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close();
  }
}

async function readNumber(folder: string, name: string): Promise<number> {
  return Number.parseInt(await readFile(join(folder, name), "utf8"), 10);
}

async function backingFileOf(folder: string): Promise<string | undefined> {
  const text = await readFile(join(folder, "loop", "backing_file"), "utf8").catch((error: unknown) => {
    if (isMissing(error)) return undefined;
    throw error;
  });
  return text?.replace(/\n$/, "");
}
