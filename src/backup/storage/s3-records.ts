import { setTimeout as sleep } from "node:timers/promises";
import { DamageError, PreconditionError } from "../base/errors.js";
import type { Bucket } from "../s3/bucket.js";
import { isRemoval, isReplacing, MOST_NOTE_BYTES, notedPoint, noteKey } from "./point-note.js";
import type { RecordFolder } from "./record-folder.js";

/**
 * How long a prune is waited for that removes a point: it gives up sooner (s3-writing.ts), if its host has
 * not slept meanwhile.
 */
const REMOVAL_WAIT_MS = 60_000;
const LOOK_MS = 200;
/** What the name of a record begins with that says who reads a point for long. */
const LIVE = ".live.";

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
  /** What a record is removed by, also after an interrupt: nobody else would, and a prune keeps the point. */
  readonly #steady: Bucket;

  constructor(place: RecordPlace) {
    this.#place = place;
    this.#steady = place.bucket.withSignal(undefined);
  }

  async names(): Promise<readonly string[]> {
    const names: string[] = [];
    for await (const { key } of this.#steady.list(this.#key("."))) {
      names.push(key.slice(this.#key("").length));
    }
    return names;
  }

  /**
   * @throws {DamageError} `E_MANIFEST`: the point is gone
   * @throws {PreconditionError} `E_BEING_REMOVED`: nobody knows whether it will be; or images that it may
   *   need are being replaced, and this is about who reads them. The record is as before
   */
  async replace(name: string, content: string): Promise<void> {
    const { bucket, prefix, id, manifest, onChange } = this.#place;
    const path = `s3://${bucket.address.bucket}/${prefix}${id}`;
    const wasThere = (await bucket.find(this.#key(name))) !== undefined;
    await bucket.put(this.#key(name), Buffer.from(content));
    onChange();
    const deadline = performance.now() + REMOVAL_WAIT_MS;
    for (;;) {
      // The note first: where there is none any more, the manifest tells how that ended.
      const note = await bucket.get(noteKey(prefix, id), MOST_NOTE_BYTES);
      if (!(await bucket.find(this.#key(manifest)))) break;
      if (!note || !isRemoval(note.bytes)) return await this.#assertNotReplaced(name, wasThere);
      if (performance.now() > deadline) {
        // That prune was killed, or it sleeps and goes on later: it looked for records before, and not again.
        if (!wasThere) await this.unlink(name);
        const message = `${path} is being removed by a prune that has not ended: wait for it; if none runs any more, the next backup of the domain, or prune that keeps the point, clears that up, and then this works again`;
        throw new PreconditionError("E_BEING_REMOVED", message, { details: { point: id } });
      }
      await sleep(LOOK_MS);
    }
    await this.unlink(name);
    const message = `there is no point ${path} any more: it was removed meanwhile`;
    throw new DamageError("E_MANIFEST", message, { details: { point: id } });
  }

  /** A prune looks for such records when it has noted that it replaces images, and before it does. */
  async #assertNotReplaced(name: string, wasThere: boolean): Promise<void> {
    if (!name.startsWith(LIVE)) return;
    const { bucket, prefix, id } = this.#place;
    for await (const { key } of bucket.list(`${prefix}.`)) {
      if (notedPoint(key.slice(prefix.length)) === undefined) continue;
      const note = await bucket.get(key, MOST_NOTE_BYTES);
      if (!note || !isReplacing(note.bytes)) continue;
      if (!wasThere) await this.unlink(name);
      const message = `a prune or repair is replacing images in s3://${bucket.address.bucket}/${prefix} that point ${id} may need: run this again in a moment; if it was killed, the next backup, prune or repair clears that up, and then this works`;
      throw new PreconditionError("E_BEING_REMOVED", message, { details: { point: id } });
    }
  }

  async unlink(name: string): Promise<void> {
    await this.#steady.remove([this.#key(name)]);
    this.#place.onChange();
  }

  /** An object that was put is on stable storage. */
  async sync(): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {}

  #key(name: string): string {
    return `${this.#place.prefix}${this.#place.id}/${name}`;
  }
}
