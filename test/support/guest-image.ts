import { join } from "node:path";
import { createImage, type QemuNbd, qemuImg, qemuIo, startQemuNbd } from "./qemu-nbd.js";

/** A guest's disk as QEMU keeps it: a qcow2 image with one persistent bitmap of the changes since a point. */
export class GuestImage {
  readonly name: string;
  readonly path: string;
  readonly #folder: string;
  #bitmap: string | undefined;
  #bitmaps = 0;

  private constructor(folder: string, name: string) {
    this.name = name;
    this.#folder = folder;
    this.path = join(folder, `${name}.guest.qcow2`);
  }

  static async create(folder: string, name: string, size: number): Promise<GuestImage> {
    const image = new GuestImage(folder, name);
    await createImage(image.path, { size });
    return image;
  }

  /** Runs qemu-io commands. */
  async io(...commands: readonly string[]): Promise<void> {
    if (commands.length > 0) await qemuIo(this.path, "qcow2", ...commands);
  }

  async resize(size: number): Promise<void> {
    await qemuImg("resize", "-q", "--shrink", "-f", "qcow2", this.path, String(size));
  }

  /** Serves the image, with the bitmap if there is one. */
  async serve(): Promise<QemuNbd> {
    const bitmap = this.#bitmap === undefined ? {} : { bitmap: this.#bitmap };
    return await startQemuNbd({ image: this.path, format: "qcow2", ...bitmap });
  }

  get bitmap(): string {
    if (this.#bitmap === undefined) throw new Error(`${this.name} has no bitmap yet`);
    return this.#bitmap;
  }

  /** Copies the current content, and begins a new bitmap. */
  async point(granularity: number): Promise<string> {
    const copy = join(this.#folder, `${this.name}.${this.#bitmaps}.reference.raw`);
    await qemuImg("convert", "-f", "qcow2", "-O", "raw", this.path, copy);
    await this.mark(granularity);
    return copy;
  }

  /** Replaces the bitmap by a new one. */
  async mark(granularity: number): Promise<void> {
    const bitmap = ["bitmap", "-f", "qcow2"];
    if (this.#bitmap !== undefined) await qemuImg(...bitmap, "--remove", this.path, this.#bitmap);
    this.#bitmap = `b${this.#bitmaps++}`;
    await qemuImg(...bitmap, "--add", "-g", String(granularity), this.path, this.#bitmap);
  }
}
