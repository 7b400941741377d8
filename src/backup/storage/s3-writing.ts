import { anySignal } from "../../nbd/index.js";
import { BackupError, hasCode } from "../base/errors.js";
import type { StoreAbilities } from "../s3/abilities.js";
import type { AskOptions } from "../s3/asker.js";
import { type Lease, takeLease } from "../s3/lease.js";
import { plainName } from "./aside-name.js";
import { DomainRecords } from "./domain-records.js";
import { LeftFiles } from "./left-files.js";
import { isBegun, notedPoint, noteKey, noteOf, uploadsIn } from "./point-note.js";
import { assertNothingThere, removeFiles, whatIsThere } from "./point-objects.js";
import { replaceObject } from "./replace-object.js";
import { S3Merge } from "./s3-merge.js";
import { S3Point } from "./s3-point.js";
import { settleMerge } from "./settle-merge.js";
import { giveUp, noteOn, type Place, removeNote } from "./store-place.js";
import { MOST_MANIFEST_BYTES } from "./stored-folder.js";
import type {
  NewStoredPoint,
  RemoveOptions,
  StoredMerge,
  StoredPointOptions,
  StoredRemoval,
  StoreWriting,
} from "./stored-writing.js";

const LEASE = ".lease";
/** As long as for the lock of a folder. */
const LEASE_WAIT_MS = 13_000;
/** From the look for who reads a point to its removal: such a reader waits for longer (s3-records.ts). */
const REMOVAL_MS = 30_000;
/** How often a point is cleared away whose manifest comes late. A store could tell of one for ever. */
const MOST_CLEARINGS = 3;

/**
 * Takes the lease of a domain.
 * @throws {PreconditionError} `E_LOCKED`: another process writes there
 */
export async function writeInS3(
  place: Omit<Place, "abilities">,
  options: AskOptions & { readonly abilities: StoreAbilities; readonly of: string },
): Promise<StoreWriting> {
  const { bucket, prefix } = place;
  const lease = await takeLease(bucket, `${prefix}${LEASE}`, { ...options, waitMs: LEASE_WAIT_MS });
  return new S3Writing({ ...place, abilities: lease.abilities }, lease);
}

class S3Writing implements StoreWriting {
  readonly records: DomainRecords;
  readonly #place: Place;
  readonly #lease: Lease;

  constructor(place: Place, lease: Lease) {
    this.#place = place;
    this.#lease = lease;
    this.records = new DomainRecords(place, lease);
  }

  get lost(): AbortSignal {
    return this.#lease.lost;
  }

  get over(): AbortSignal {
    return this.#lease.over;
  }

  get abilities(): StoreAbilities {
    return this.#place.abilities;
  }

  get canMerge(): boolean {
    return this.#place.abilities.conditionalReplace;
  }

  async assertHeld(): Promise<void> {
    await this.#lease.confirm();
  }

  async clearLeftovers({
    signal,
    goOnWith,
  }: AskOptions & { readonly goOnWith?: ReadonlySet<string> | undefined } = {}): Promise<void> {
    const { bucket, prefix, isPoint } = this.#place;
    const { lost } = this.#lease;
    const options = { signal: anySignal(signal, lost) };
    for await (const { key } of bucket.list(`${prefix}.`, options)) {
      const id = notedPoint(key.slice(prefix.length));
      if (id === undefined || !isPoint(id)) continue;
      if (goOnWith?.has(id) && (await this.#isBegun(id, options))) continue;
      await this.#clear(id, options);
    }
    for (const id of await this.#movedPoints(options)) await this.#clear(id, options);
  }

  /**
   * Points whose manifests say that images lie aside. A version that knows nothing of that removes the note.
   */
  async #movedPoints(options: AskOptions): Promise<string[]> {
    const { bucket, prefix, isPoint, manifest, mergeState } = this.#place;
    const merged = new Set<string>();
    for await (const { key } of bucket.list(prefix, options)) {
      const [id = "", name = ""] = key.slice(prefix.length).split("/");
      // Digest files keep such names, so few points are looked at in vain.
      if (isPoint(id) && plainName(name) !== name) merged.add(id);
    }
    const moved: string[] = [];
    for (const id of merged) {
      const found = await bucket
        .get(`${prefix}${id}/${manifest}`, MOST_MANIFEST_BYTES, options)
        .catch((error: unknown) => {
          if (hasCode(error, "E_S3_TOO_LARGE")) return undefined;
          throw error;
        });
      if (found && mergeState(found.bytes)?.aside.length) moved.push(id);
    }
    return moved;
  }

  async #isBegun(id: string, options: AskOptions): Promise<boolean> {
    const note = await noteOn(this.#place, id, options);
    return (
      note !== undefined && isBegun(note) && (await whatIsThere(this.#place, id, options)) === "no manifest"
    );
  }

  async #clear(id: string, options: AskOptions): Promise<void> {
    const { bucket } = this.#place;
    const uploads = uploadsIn(await noteOn(this.#place, id, options));
    for (let clearings = 0; clearings < MOST_CLEARINGS; clearings += 1) {
      await this.#lease.confirm();
      // Before the look: a run that was only suspended finds out that its point is gone, or it was published.
      const note = noteOf("cleared", uploads);
      await bucket.put(noteKey(this.#place.prefix, id), note, options);
      if ((await whatIsThere(this.#place, id, options)) === "point") {
        await settleMerge(this.#place, this.#lease, id, { ...options, uploads });
      } else await removeFiles(this.#place, id, options);
      await removeNote(this.#place, this.#lease, { id, note }, options);
      // Such a run may have put its manifest when its files were gone, and seen the note.
      if ((await whatIsThere(this.#place, id, options)) !== "manifest alone") return;
    }
  }

  async clearPoint(id: string, options: AskOptions = {}): Promise<void> {
    if ((await whatIsThere(this.#place, id, options)) === "point") await this.#clear(id, options);
  }

  async begin(id: string, options: StoredPointOptions = {}): Promise<NewStoredPoint> {
    const note = noteOf("begun");
    const { bucket, prefix } = this.#place;
    const goesOn = options.goOn === true && (await this.#isBegun(id, options));
    if (!goesOn) await assertNothingThere(this.#place, id, options);
    this.#lease.assertHeld();
    // From here on whoever has begun it finds its note replaced, and commits nothing.
    await bucket.put(noteKey(prefix, id), note, options);
    const left = goesOn ? await LeftFiles.find(bucket, `${prefix}${id}/`, options) : undefined;
    return new S3Point(this.#place, this.#lease, { id, note, left }, options);
  }

  async removePoint(id: string, options: RemoveOptions = {}): Promise<StoredRemoval> {
    const { bucket, prefix, manifest, isPoint } = this.#place;
    if (!isPoint(id)) throw new RangeError(`${JSON.stringify(id)} is not the id of a point`);
    const point = `${prefix}${id}/`;
    // Of all its files, which were made together and have the same rules.
    const versions = await bucket.keptVersion(`${point}${manifest}`, options);
    const note = noteOf("removing");
    await this.#lease.confirm();
    await bucket.put(noteKey(prefix, id), note, options);
    // Who was suspended until now has lost the lease: its next holder replaces or removes the notes it finds.
    if (!(await noteOn(this.#place, id, options))?.equals(note)) {
      giveUp(this.#lease, "its note was replaced");
    }
    let bytes = 0;
    const names: string[] = [];
    await soonEnough(id, options, async (soon) => {
      for await (const { key, size } of bucket.list(point, soon)) {
        bytes += size;
        names.push(key.slice(point.length));
      }
      try {
        options.refuse?.(names);
      } catch (error) {
        await removeNote(this.#place, this.#lease, { id, note }, options);
        throw error;
      }
      this.#lease.assertHeld();
      await bucket.remove([`${point}${manifest}`], soon);
    });
    await this.#lease.confirm();
    await removeFiles(this.#place, id, options);
    await removeNote(this.#place, this.#lease, { id, note }, options);
    return { bytes, versions };
  }

  async merge(id: string, options: Parameters<StoreWriting["merge"]>[1] = {}): Promise<StoredMerge> {
    return await S3Merge.begin(this.#place, this.#lease, id, options);
  }

  async rewrite(id: string, change: (text: string, etag: string) => string): Promise<void> {
    const { bucket, prefix, manifest, abilities, onChange } = this.#place;
    const options = { signal: this.#lease.over };
    const key = `${prefix}${id}/${manifest}`;
    const found = await bucket.get(key, MOST_MANIFEST_BYTES, options);
    if (!found) return giveUp(this.#lease, `point ${id} is gone`);
    const bytes = Buffer.from(change(found.bytes.toString("utf8"), found.etag));
    await this.#lease.confirm();
    const etag = await replaceObject(bucket, key, bytes, { ...options, abilities, etag: found.etag });
    if (etag === undefined) giveUp(this.#lease, "its manifest was replaced");
    onChange();
  }

  async release(): Promise<void> {
    await this.#lease.release();
  }
}

/** @throws {BackupError} `E_S3_UNREACHABLE`: what must be done soon was not */
async function soonEnough(
  id: string,
  { signal }: AskOptions,
  work: (options: AskOptions) => Promise<void>,
): Promise<void> {
  const late = new AbortController();
  const giveUpNow = (): void => {
    const message = `removing point ${id}: the store has not answered for ${REMOVAL_MS / 1000} s, so nobody knows whether the point is still there: look at the network and the store, and prune again`;
    late.abort(new BackupError("E_S3_UNREACHABLE", message, { details: { point: id } }));
  };
  const timer = setTimeout(giveUpNow, REMOVAL_MS);
  try {
    await work({ signal: anySignal(signal, late.signal) });
  } finally {
    clearTimeout(timer);
  }
}
