import { randomBytes } from "node:crypto";
import { anySignal } from "../../nbd/index.js";
import { hasCode } from "../base/errors.js";
import type { CreateOptions, NewFile, RemoteNewFile } from "../image/new-file.js";
import type { AskOptions, StoredObject } from "../s3/asker.js";
import { LEAST_PART_BYTES, ObjectAssembly } from "../s3/assembly.js";
import type { Lease } from "../s3/lease.js";
import { ObjectUpload } from "../s3/upload.js";
import { asideName } from "./aside-name.js";
import { assertAlike, copyObject } from "./copy-object.js";
import { patchedRanges } from "./patched-ranges.js";
import { type NotedUpload, noteKey, noteOf } from "./point-note.js";
import { replaceObject } from "./replace-object.js";
import { UploadedFile } from "./s3-new-file.js";
import { DIGEST_BUFFERS } from "./s3-point.js";
import { settleMerge } from "./settle-merge.js";
import { giveUp, noteOn, type Place, removeNote } from "./store-place.js";
import { MOST_MANIFEST_BYTES } from "./stored-folder.js";
import type {
  KeptVersion,
  MergedManifests,
  StoredMerge,
  StoredParts,
  StoredPatch,
} from "./stored-writing.js";

/** What is there of the point, as this process knows it. */
interface Current {
  manifest: { readonly bytes: Buffer; readonly etag: string };
  note: Buffer;
}

export class S3Merge implements StoredMerge {
  readonly #place: Place;
  readonly #lease: Lease;
  readonly #id: string;
  readonly #options: AskOptions;
  readonly #nonce = randomBytes(4).toString("hex");
  /** The new images, by the names of the files that they replace. */
  readonly #images = new Map<string, ObjectAssembly>();
  /** What the patched ones among them have in common with the old ones. */
  readonly #unpatched = new Map<string, readonly { readonly start: number; readonly length: number }[]>();
  readonly #current: Current;
  #isCommitted = false;

  private constructor(place: Place, lease: Lease, id: string, current: Current, options: AskOptions) {
    this.#place = place;
    this.#lease = lease;
    this.#id = id;
    this.#current = current;
    this.#options = options;
  }

  static async begin(
    place: Place,
    lease: Lease,
    id: string,
    { refuse, ...options }: AskOptions & { readonly refuse?: MergedManifests["refuse"] },
  ): Promise<S3Merge> {
    const { bucket, prefix, manifest } = place;
    refuse?.(await recordsIn(place, options));
    const note = await putNote(place, lease, id, noteOf("merging"), options);
    const there = await bucket.get(`${prefix}${id}/${manifest}`, MOST_MANIFEST_BYTES, options);
    if (!there) return giveUp(lease, `point ${id} is gone`);
    const state = place.mergeState(there.bytes);
    // What dead runs have left was settled when the lease was taken.
    if (state?.aside.length) return giveUp(lease, `another one merges point ${id}`);
    const merge = new S3Merge(place, lease, id, { manifest: there, note }, options);
    try {
      // What can't be undone is not begun.
      state?.text();
    } catch (error) {
      await merge.discard().catch(() => undefined);
      throw error;
    }
    return merge;
  }

  nameOf(name: string): string {
    return asideName(name, this.#nonce);
  }

  async replace(name: string, parts: StoredParts): Promise<NewFile> {
    const { bucket, prefix } = this.#place;
    const objects = new Map<string, StoredObject>();
    for (const { point, file } of parts.ranges) {
      const key = `${prefix}${point}/${file}`;
      if (!objects.has(key)) objects.set(key, await bucket.findThere(key, this.#options));
    }
    const ranges = parts.ranges.map(({ point, file, start, length }) => {
      const key = `${prefix}${point}/${file}`;
      return { key, etag: objects.get(key)?.etag ?? "", start, length };
    });
    const key = this.#key(name);
    const { late } = this.#lease;
    const image = await ObjectAssembly.begin(bucket, key, { ...this.#options, late, ...parts, ranges });
    this.#images.set(name, image);
    return new AssembledFile(`${this.#place.path}/${this.#id}/${name}`, image);
  }

  async patch(name: string, patches: readonly StoredPatch[]): Promise<void> {
    const { bucket } = this.#place;
    const key = this.#key(name);
    const ranges = patchedRanges(bucket, await bucket.findThere(key, this.#options), patches);
    const parts = { headBytes: 0, ranges, tailPartBytes: LEAST_PART_BYTES };
    const { late } = this.#lease;
    const image = await ObjectAssembly.begin(bucket, key, { ...this.#options, late, ...parts });
    this.#images.set(name, image);
    this.#unpatched.set(
      name,
      ranges.filter((range) => "start" in range),
    );
    await image.send();
  }

  add(name: string): RemoteNewFile {
    const path = `${this.#place.path}/${this.#id}/${name}`;
    const create = async ({ mostBytes, inOrder }: CreateOptions): Promise<NewFile> => {
      const { late } = this.#lease;
      const options = { ...this.#options, late, mostBytes, inOrder, bufferBytes: DIGEST_BUFFERS };
      return new UploadedFile(path, new ObjectUpload(this.#place.bucket, this.#key(name), options));
    };
    return { path, create };
  }

  async commit({
    aside,
    merged,
    prove,
    stale,
    refuse,
    onStep = () => undefined,
  }: MergedManifests): Promise<KeptVersion[]> {
    const { bucket, onChange } = this.#place;
    // Not with the caller's signal, once the manifest has changed: it would have to be undone. But some seconds
    // after it the next run is left to do that.
    const options = { signal: this.#lease.over };
    const before = this.#current.manifest.bytes.toString("utf8");
    // Both before anything is changed: it may be that one of them can't be made.
    const manifests = { aside: aside(before), merged: merged(before) };
    const note = noteOf("replacing", this.#uploads);
    this.#current.note = await putNote(this.#place, this.#lease, this.#id, note, options);
    refuse(await recordsIn(this.#place, options));
    onStep("replacement noted");
    const names = [...this.#images.keys()];
    const versions = await this.#versionsOf(names, options);
    for (const name of names) {
      const { late, over } = this.#lease;
      const signal = anySignal(this.#options.signal, over);
      await copyObject(bucket, this.#key(name), this.#key(this.nameOf(name)), { signal, late });
      onStep(`aside ${name}`);
    }
    this.#options.signal?.throwIfAborted();
    await this.#replaceManifest(manifests.aside, options);
    onStep("manifest aside");
    for (const [name, image] of this.#images) {
      await this.#lease.confirm();
      await image.complete(options);
      onStep(`replaced ${name}`);
    }
    onChange();
    for (const [name, ranges] of this.#unpatched) {
      const [old, image] = await Promise.all(
        [this.nameOf(name), name].map((each) => bucket.findThere(this.#key(each), options)),
      );
      if (old && image) await assertAlike(bucket, old, image, { ...options, ranges });
    }
    await prove();
    onStep("images proven");
    await this.#replaceManifest(manifests.merged, options);
    onChange();
    this.#isCommitted = true;
    onStep("manifest merged");
    const left = [...names.map((name) => this.nameOf(name)), ...stale];
    versions.push(...(await this.#versionsOf(left, options)));
    await this.#lease.confirm();
    await bucket.remove(
      left.map((name) => this.#key(name)),
      options,
    );
    onStep("aside removed");
    await this.#removeNote(options);
    onChange();
    return versions;
  }

  async discard(): Promise<void> {
    await Promise.all([...this.#images.values()].map((image) => image[Symbol.asyncDispose]()));
    if (this.#isCommitted) return;
    const options = { signal: this.#lease.over };
    await this.#lease.confirm();
    await settleMerge(this.#place, this.#lease, this.#id, { ...options, uploads: this.#uploads });
    await this.#removeNote(options);
  }

  async #removeNote(options: AskOptions): Promise<void> {
    const { note } = this.#current;
    await removeNote(this.#place, this.#lease, { id: this.#id, note }, options);
  }

  /** Those of the new images. */
  get #uploads(): NotedUpload[] {
    return [...this.#images].map(([file, { uploadId }]) => ({ file, uploadId }));
  }

  async #versionsOf(names: readonly string[], options: AskOptions): Promise<KeptVersion[]> {
    const { bucket } = this.#place;
    const versions: KeptVersion[] = [];
    for (const name of names) {
      const kept = await bucket.keptVersion(this.#key(name), options).catch((error: unknown) => {
        if (hasCode(error, "E_S3_MISSING")) return undefined;
        throw error;
      });
      if (kept) versions.push(kept);
    }
    return versions;
  }

  /** A process that has taken the lease meanwhile has put another one. */
  async #replaceManifest(text: string, options: AskOptions): Promise<void> {
    const { bucket, manifest, abilities } = this.#place;
    const bytes = Buffer.from(text);
    await this.#lease.confirm();
    const condition = { ...options, abilities, etag: this.#current.manifest.etag };
    const etag = await replaceObject(bucket, this.#key(manifest), bytes, condition);
    if (etag === undefined) return giveUp(this.#lease, "its manifest was replaced");
    this.#current.manifest = { bytes, etag };
  }

  #key(name: string): string {
    return `${this.#place.prefix}${this.#id}/${name}`;
  }
}

/** The records of the points of a domain. */
async function recordsIn(
  { bucket, prefix, isPoint }: Place,
  options: AskOptions,
): Promise<{ point: string; name: string }[]> {
  const records: { point: string; name: string }[] = [];
  for await (const { key } of bucket.list(prefix, options)) {
    const [point = "", name = ""] = key.slice(prefix.length).split("/");
    if (isPoint(point) && name.startsWith(".")) records.push({ point, name });
  }
  return records;
}

/** @returns the note @throws {BackupError} `E_LEASE_LOST` */
async function putNote(
  place: Place,
  lease: Lease,
  id: string,
  note: Buffer,
  options: AskOptions,
): Promise<Buffer> {
  await lease.confirm();
  await place.bucket.put(noteKey(place.prefix, id), note, options);
  // Who was suspended until now has lost the lease: its next holder replaces or removes the notes it finds.
  if (!(await noteOn(place, id, options))?.equals(note)) giveUp(lease, "its note was replaced");
  return note;
}

/** A new image as a file. It lives as long as its merge. */
class AssembledFile implements NewFile {
  readonly path: string;
  readonly #image: ObjectAssembly;

  constructor(path: string, image: ObjectAssembly) {
    this.path = path;
    this.#image = image;
  }

  async write(data: Uint8Array, position: number): Promise<void> {
    await this.#image.write(data, position);
  }

  /** @throws {RangeError} always: wait for `write` */
  writeNow(): never {
    throw new RangeError(`${this.path} is written by and by`);
  }

  async capacity(): Promise<void> {}

  async truncate(length: number): Promise<void> {
    this.#image.truncate(length);
  }

  /** Only whole objects are on stable storage. */
  async datasync(): Promise<void> {}

  async sync(): Promise<void> {}

  async finish(): Promise<void> {
    await this.#image.send();
  }

  async close(): Promise<void> {}
}
