import { createHash } from "node:crypto";
import { UsageError } from "../base/errors.js";
import { NamelessFile } from "../host/nameless-file.js";

export interface DiskCacheOptions {
  /** The folder that the file is made in. It is made if it is missing. */
  readonly folder: string;
  /** Most bytes of the file. */
  readonly bytes: number;
}

const PREFIX = ".nbdpull-cache-";
const DIGEST_BYTES = 32;
/** What comes while so many bytes are being written is not kept: a cache must not hold up who reads. */
const WRITTEN_AT_ONCE = 8 * 1024 * 1024;
/** A map has at most twice as many entries. Their digests take 256 MiB. */
const MOST_SLOTS = 2 ** 23;

/**
 * Clusters that were read from a repository, in a file of this machine. What is read from it is compared with
 * the SHA-256 that it had when it was written, which is kept in memory: what a disk has corrupted, or
 * somebody has changed, is read from the repository again.
 *
 * The file has no name. So no two processes share one, and what a killed one has written is gone.
 */
export class DiskCache implements AsyncDisposable {
  readonly #file: NamelessFile;
  readonly #slotBytes: number;
  readonly #slots: number;
  readonly #onFailure: (error: unknown) => void;
  /** The slots by the keys of their clusters, least recently used first. */
  readonly #kept = new Map<number, number>();
  /** By slot. */
  readonly #digests: Buffer;
  /** Slots that were used at some time; those from here on were not. */
  #used = 0;
  readonly #free: number[] = [];
  readonly #writes = new Set<Promise<void>>();
  /** Bytes of these writes. */
  #underWay = 0;
  /** Nothing is kept any longer. */
  #failed = false;

  private constructor(
    file: NamelessFile,
    digests: Buffer,
    slotBytes: number,
    onFailure: (error: unknown) => void,
  ) {
    this.#file = file;
    this.#slotBytes = slotBytes;
    this.#slots = digests.length / DIGEST_BYTES;
    this.#onFailure = onFailure;
    this.#digests = digests;
  }

  /**
   * @param largest bytes of the largest cluster
   * @param onFailure called once, when the file can't be written: from then on it is empty
   * @throws {UsageError} `E_CACHE`: there can't be a file in the folder, or no cluster fits
   */
  static async create(
    { folder, bytes }: DiskCacheOptions,
    largest: number,
    onFailure: (error: unknown) => void,
  ): Promise<DiskCache> {
    const slots = Math.min(MOST_SLOTS, Math.floor(bytes / largest));
    if (slots < 1) {
      const message = `a cache of ${bytes} bytes has no room for a cluster, which has ${largest}: allow it more`;
      throw new UsageError("E_CACHE", message, { details: { bytes, cluster: largest } });
    }
    // Memory that is not there is no fault of the folder's, and leaves no file open.
    const digests = Buffer.alloc(slots * DIGEST_BYTES);
    try {
      return new DiskCache(await NamelessFile.create(folder, PREFIX), digests, largest, onFailure);
    } catch (cause) {
      const why = (cause as Error).message;
      const message = `nothing can be cached in ${folder}: ${why}. Name a folder that this user may write to`;
      throw new UsageError("E_CACHE", message, { cause, details: { folder } });
    }
  }

  /** The cluster of this key; undefined: it is not kept, or not as it was. */
  async get(key: number, length: number): Promise<Buffer | undefined> {
    const slot = this.#kept.get(key);
    if (slot === undefined) return undefined;
    this.#kept.delete(key);
    this.#kept.set(key, slot);
    // Another cluster may get the slot, and its digest, while this one is read.
    const digest = Buffer.from(this.#digests.subarray(slot * DIGEST_BYTES, (slot + 1) * DIGEST_BYTES));
    const bytes = Buffer.allocUnsafe(length);
    const isThere = await this.#file.fill(bytes, slot * this.#slotBytes).catch(() => false);
    if (isThere && sha256(bytes).equals(digest)) return bytes;
    if (this.#kept.get(key) === slot) this.#drop(key, slot);
    return undefined;
  }

  /** Keeps a cluster, if that takes no time of who reads. */
  put(key: number, bytes: Buffer): void {
    if (this.#failed || this.#underWay >= WRITTEN_AT_ONCE || this.#kept.has(key)) return;
    const slot = this.#takeSlot();
    if (slot === undefined) return;
    this.#underWay += bytes.length;
    const writing = this.#write(key, slot, bytes).finally(() => {
      this.#underWay -= bytes.length;
      this.#writes.delete(writing);
    });
    this.#writes.add(writing);
  }

  async close(): Promise<void> {
    this.#failed = true;
    await Promise.all(this.#writes);
    await this.#file.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #write(key: number, slot: number, bytes: Buffer): Promise<void> {
    const digest = sha256(bytes);
    try {
      await this.#file.write(bytes, slot * this.#slotBytes);
    } catch (error) {
      this.#fail(error);
    }
    // A write that was under way at a failure has made the file longer again.
    if (this.#failed) return await this.#file.empty().catch(() => undefined);
    const before = this.#kept.get(key);
    if (before !== undefined) this.#drop(key, before);
    digest.copy(this.#digests, slot * DIGEST_BYTES);
    this.#kept.set(key, slot);
  }

  /** Others need the room of a full disk more than a cache does. */
  #fail(error: unknown): void {
    if (this.#failed) return;
    this.#failed = true;
    this.#kept.clear();
    this.#onFailure(error);
  }

  /** One that was never used, or the one that was not used for the longest time. */
  #takeSlot(): number | undefined {
    const free = this.#free.pop();
    if (free !== undefined) return free;
    if (this.#used < this.#slots) return this.#used++;
    const [oldest] = this.#kept;
    if (oldest === undefined) return undefined;
    this.#kept.delete(oldest[0]);
    return oldest[1];
  }

  #drop(key: number, slot: number): void {
    this.#kept.delete(key);
    this.#free.push(slot);
  }
}

function sha256(bytes: Uint8Array): Buffer {
  return createHash("sha256").update(bytes).digest();
}
