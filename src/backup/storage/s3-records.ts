import { setTimeout as sleep } from "node:timers/promises";
import { DamageError } from "../base/errors.js";
import type { Bucket } from "../s3/bucket.js";
import { isRemoval, MOST_NOTE_BYTES, noteKey } from "./point-note.js";
import type { RecordFolder } from "./stored-folder.js";

/** How long a prune may take to say whether it removes a point: it repeats its requests for as long. */
const REMOVAL_WAIT_MS = 60_000;
const LOOK_MS = 200;

interface RecordPlace {
  readonly bucket: Bucket;
  /** Of all keys of the domain; it ends with a slash. */
  readonly prefix: string;
  readonly id: string;
  /** The file that makes a point. */
  readonly manifest: string;
  /** Called when something has changed. */
  readonly onChange: () => void;
}

/**
 * The records of a point in a bucket. They are written without the lease, which a backup may have for hours.
 * A prune looks for them after it has put its note and before it removes anything; here the note is looked
 * for after the record was put. So one of the two sees the other.
 */
export class S3Records implements RecordFolder {
  readonly #place: RecordPlace;

  constructor(place: RecordPlace) {
    this.#place = place;
  }

  async names(): Promise<readonly string[]> {
    const names: string[] = [];
    for await (const { key } of this.#place.bucket.list(this.#key("."))) {
      names.push(key.slice(this.#key("").length));
    }
    return names;
  }

  async replace(name: string, content: string): Promise<void> {
    const { bucket, prefix, id, manifest, onChange } = this.#place;
    await bucket.put(this.#key(name), Buffer.from(content));
    onChange();
    const deadline = performance.now() + REMOVAL_WAIT_MS;
    for (;;) {
      // The note first: where there is none any more, the manifest tells how that ended.
      const note = await bucket.get(noteKey(prefix, id), MOST_NOTE_BYTES);
      if (!(await bucket.find(this.#key(manifest)))) break;
      // A killed prune leaves its note; the next one that writes there keeps the point then.
      if (!note || !isRemoval(note.bytes) || performance.now() > deadline) return;
      await sleep(LOOK_MS);
    }
    await bucket.remove([this.#key(name)]);
    const message = `there is no point s3://${bucket.address.bucket}/${prefix}${id} any more: it was removed meanwhile`;
    throw new DamageError("E_MANIFEST", message, { details: { point: id } });
  }

  async unlink(name: string): Promise<void> {
    await this.#place.bucket.remove([this.#key(name)]);
    this.#place.onChange();
  }

  /** An object that was put is on stable storage. */
  async sync(): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {}

  #key(name: string): string {
    return `${this.#place.prefix}${this.#place.id}/${name}`;
  }
}
