import { anySignal } from "../../nbd/index.js";
import { tellLeft } from "../base/grace.js";
import type { CreateOptions, RemoteNewFile } from "../image/new-file.js";
import type { Lease } from "../s3/lease.js";
import { imageBufferBytes } from "../s3/part-layout.js";
import { ObjectUpload } from "../s3/upload.js";
import { composedParts } from "./composed-parts.js";
import { createObject } from "./create-object.js";
import type { LeftFiles } from "./left-files.js";
import { noteKey, noteOf } from "./point-note.js";
import { removeFiles } from "./point-objects.js";
import { UploadedFile } from "./s3-new-file.js";
import { giveUp, noteOn, type Place } from "./store-place.js";
import type { NewStoredPoint, StoredPointOptions } from "./stored-writing.js";

const MIB = 1024 * 1024;
/** How long a process that has lost its lease tries to have the next one look. */
const LATE_NOTE_MS = 10_000;
/** Bytes of the buffers of a digest file beside its image: one part is uploaded before the next is filled. */
export const DIGEST_BUFFERS = 8 * MIB;

/** A point that was begun. */
interface Begun {
  readonly id: string;
  readonly note: Buffer;
  /** What a killed run has left of it; undefined: it is begun anew. */
  readonly left: LeftFiles | undefined;
}

/** A point that is being made in a bucket. */
export class S3Point implements NewStoredPoint {
  readonly #place: Place;
  readonly #lease: Lease;
  readonly #id: string;
  readonly #note: Buffer;
  readonly #left: LeftFiles | undefined;
  readonly #options: StoredPointOptions;
  /** Whether its manifest is there, whoever has the lease. */
  #isMade = false;

  constructor(place: Place, lease: Lease, { id, note, left }: Begun, options: StoredPointOptions) {
    this.#place = place;
    this.#lease = lease;
    this.#id = id;
    this.#note = note;
    this.#left = left;
    this.#options = options;
  }

  at(name: string): RemoteNewFile {
    const { signal, goOn: stays, imagesAtOnce = 1, digestsBeside = false } = this.#options;
    const { bucket } = this.#place;
    const path = `${this.#place.path}/${this.#id}/${name}`;
    const key = this.#key(name);
    return {
      path,
      create: async ({ mostBytes, inOrder }: CreateOptions) => {
        const bufferBytes = inOrder && digestsBeside ? DIGEST_BUFFERS : imageBufferBytes(imagesAtOnce);
        const left = await this.#left?.upload(key, { signal });
        const options = { signal, late: this.#lease.late, stays, mostBytes, inOrder, bufferBytes, left };
        const composed = inOrder ? undefined : await composedParts(bucket, key, options);
        return new UploadedFile(path, new ObjectUpload(bucket, key, { ...options, composed }));
      },
      leftWhole: (bytes) => this.#left?.whole(key, bytes),
    };
  }

  async create(name: string, content: Uint8Array): Promise<void> {
    this.#lease.assertHeld();
    await this.#place.bucket.put(this.#key(name), content, this.#options);
  }

  async publish(name: string, text: string): Promise<void> {
    const { bucket, abilities } = this.#place;
    const key = this.#key(name);
    // Not with the caller's signal: whoever interrupts it would not know whether there is a point. But it
    // ends some seconds later, and no manifest is sent once others may have the lease.
    const options = { signal: this.#lease.over };
    this.#lease.assertHeld();
    await this.#left?.removeRest(options);
    try {
      if (!(await createObject(bucket, key, Buffer.from(text), { abilities, ...options }))) {
        giveUp(this.#lease, "another one made it");
      }
      this.#isMade = true;
      const note = await noteOn(this.#place, this.#id, options);
      if (!note?.equals(this.#note)) giveUp(this.#lease, "its note was replaced");
    } catch (error) {
      // Whoever has the lease now has removed the files, or kept the point, or made it. Only a holder of the
      // lease can tell, so nothing is removed here.
      await this.#haveNextLook();
      if (this.#isMade) tellLeft(this.#options.signal, `point ${this.#id} was made`);
      throw error;
    }
    // The next run removes it otherwise.
    await bucket.remove([noteKey(this.#place.prefix, this.#id)], options).catch(() => undefined);
  }

  async discard(): Promise<void> {
    const { bucket, prefix, manifest } = this.#place;
    const options = { signal: this.#lease.over };
    const { goOn = false, signal } = this.#options;
    const isLeft = goOn && signal?.aborted && !this.#isMade && !this.#lease.lost.aborted;
    if (isLeft)
      tellLeft(signal, `what there is of point ${this.#id} stays, and the same command goes on with it`);
    // The next holder of the lease clears it away, and may be making a point of the same id.
    try {
      await this.#lease.confirm();
    } catch (error) {
      // It may have done so before the last upload arrived.
      await this.#haveNextLook();
      throw error;
    }
    // A removal that is cut off, by a signal or a kill, may be done when the next run counts on the file, or has
    // made it again.
    if (goOn) return;
    if (!(await noteOn(this.#place, this.#id, options))?.equals(this.#note)) return;
    // Its answer may have been lost, or it is another process's.
    if (await bucket.find(`${prefix}${this.#id}/${manifest}`, options)) return;
    await removeFiles(this.#place, this.#id, options);
    await bucket.remove([noteKey(this.#place.prefix, this.#id)], options);
  }

  /**
   * Leaves a note where there is none, with or without the lease: it removes nothing, and one that is not
   * needed only has the next holder look.
   */
  async #haveNextLook(): Promise<void> {
    const { bucket, prefix, abilities } = this.#place;
    // Not with `lost`, which may be aborted by now. Until then the note is there that it was begun with, so a
    // signal may end this.
    const { late, lost } = this.#lease;
    const signal = anySignal(AbortSignal.timeout(LATE_NOTE_MS), lost.aborted ? undefined : late);
    const options = { abilities, signal };
    await createObject(bucket, noteKey(prefix, this.#id), noteOf("late"), options).catch(() => undefined);
  }

  #key(name: string): string {
    return `${this.#place.prefix}${this.#id}/${name}`;
  }
}
