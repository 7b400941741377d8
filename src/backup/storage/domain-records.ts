import type { Bucket } from "../s3/bucket.js";
import type { Lease } from "../s3/lease.js";
import type { RecordFolder } from "./record-folder.js";

interface RecordPlace {
  readonly bucket: Bucket;
  /** Of all keys of the domain; it ends with a slash. */
  readonly prefix: string;
}

/** The small files beside the points of a domain in a bucket, for whoever has its lease. */
export class DomainRecords implements RecordFolder {
  readonly #place: RecordPlace;
  readonly #lease: Lease;

  constructor(place: RecordPlace, lease: Lease) {
    this.#place = place;
    this.#lease = lease;
  }

  async names(): Promise<readonly string[]> {
    const { bucket, prefix } = this.#place;
    const names: string[] = [];
    for await (const { key } of bucket.list(`${prefix}.`, this.#options))
      names.push(key.slice(prefix.length));
    return names;
  }

  /** @throws {BackupError} `E_LEASE_LOST` */
  async replace(name: string, content: string): Promise<void> {
    const { bucket, prefix } = this.#place;
    this.#lease.assertHeld();
    await bucket.put(`${prefix}${name}`, Buffer.from(content), this.#options);
  }

  /** @throws {BackupError} `E_LEASE_LOST` */
  async unlink(name: string): Promise<void> {
    const { bucket, prefix } = this.#place;
    this.#lease.assertHeld();
    await bucket.remove([`${prefix}${name}`], this.#options);
  }

  /** An object that was put is on stable storage. */
  async sync(): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {}

  get #options(): { readonly signal: AbortSignal } {
    return { signal: this.#lease.over };
  }
}
