import { randomUUID } from "node:crypto";
import type { HeldFolder } from "../host/held-folder.js";
import { type Guard, ImageFile } from "../image/image-file.js";
import { REFCOUNT_BYTES } from "../qcow2/format.js";
import type { DiskManifest } from "../repository/manifest.js";
import type { ImageMender, WrongRefcount } from "./image-mender.js";
import type { ClusterMend, DamagedCluster } from "./mend-clusters.js";
import type { DigestsPlace } from "./remake-digests.js";

const NONE: ReadonlySet<number> = new Set();

/**
 * Mends an image in a folder of this machine in place. Only bytes that are wrong anyway are overwritten, one
 * place at a time, so whenever it is killed nothing is lost.
 */
export class FolderMender implements ImageMender {
  readonly isDeferred = false;
  readonly digests: DigestsPlace;
  readonly #folder: HeldFolder;
  readonly #disk: DiskManifest;
  readonly #guard: Guard;
  #file: ImageFile | undefined;

  /** @param folder of the point, which the mender closes */
  constructor(folder: HeldFolder, disk: DiskManifest, guard: Guard) {
    this.#folder = folder;
    this.#disk = disk;
    this.#guard = guard;
    this.digests = { put: (write, sha256) => this.#putDigests(write, sha256) };
  }

  /** Each lies in one sector, so it is written as a whole or not at all. */
  async refcounts(entries: readonly WrongRefcount[]): Promise<void> {
    const file = await this.#open();
    for (const entry of entries) await file.write(refcountBytes(entry), entry.position);
    await file.sync();
  }

  async cluster(_damaged: DamagedCluster, { content, places }: ClusterMend): Promise<void> {
    const file = await this.#open();
    for (const { offset, length, position } of places)
      await file.write(content.subarray(offset, offset + length), position);
  }

  leave(): void {}

  async finish(): Promise<ReadonlySet<number>> {
    await this.#file?.sync();
    return NONE;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file?.close();
    await this.#folder.close();
  }

  async #open(): Promise<ImageFile> {
    this.#file ??= await ImageFile.openForWriting(this.#folder.at(this.#disk.file), this.#guard);
    return this.#file;
  }

  async #putDigests(write: Parameters<DigestsPlace["put"]>[0], sha256: string): Promise<boolean> {
    const folder = this.#folder;
    const file = this.#disk.digests?.file ?? "";
    const prefix = `.${file}.`;
    for (const name of await folder.names()) if (name.startsWith(prefix)) await folder.unlink(name);
    const temporary = `${prefix}${randomUUID()}`;
    try {
      if ((await write(folder.at(temporary))) !== sha256) return false;
      await this.#guard();
      await folder.rename(temporary, file);
      await folder.shareFiles();
      await folder.sync();
      return true;
    } finally {
      await folder.unlink(temporary);
    }
  }
}

export function refcountBytes({ length, refcount }: WrongRefcount): Buffer {
  const bytes = Buffer.alloc(length);
  bytes.writeUInt16BE(refcount, length - REFCOUNT_BYTES);
  return bytes;
}
