import type { StoreAbilities } from "../s3/abilities.js";
import type { AskOptions } from "../s3/asker.js";
import type { Bucket } from "../s3/bucket.js";
import type { Lease } from "../s3/lease.js";
import { MOST_NOTE_BYTES, noteKey } from "./point-note.js";
import type { MergeState } from "./stored-writing.js";

/** The folder of a domain in a bucket. */
export interface Place {
  readonly bucket: Bucket;
  /** Of all keys of the domain; it ends with a slash. */
  readonly prefix: string;
  /** For messages. */
  readonly path: string;
  /** The file that makes a point. */
  readonly manifest: string;
  /** Whether a point can be called so. */
  readonly isPoint: (name: string) => boolean;
  readonly mergeState: (manifest: Buffer) => MergeState | undefined;
  /** Called when files of points have changed. */
  readonly onChange: () => void;
  readonly abilities: StoreAbilities;
}

/** @throws {BackupError} `E_LEASE_LOST` */
export function giveUp(lease: Lease, cause: string): never {
  lease.lose(cause);
  throw lease.lost.reason;
}

/**
 * Removes a note that this process has put, unless another one has taken its place.
 * @throws {BackupError} `E_LEASE_LOST`
 */
export async function removeNote(
  place: Place,
  lease: Lease,
  { id, note }: { readonly id: string; readonly note: Buffer },
  options: AskOptions,
): Promise<void> {
  await lease.confirm();
  if (!(await noteOn(place, id, options))?.equals(note)) return;
  await place.bucket.remove([noteKey(place.prefix, id)], options);
}

/** The note of a point; undefined: there is none. */
export async function noteOn(
  { bucket, prefix }: Place,
  id: string,
  options: AskOptions,
): Promise<Buffer | undefined> {
  return (await bucket.get(noteKey(prefix, id), MOST_NOTE_BYTES, options))?.bytes;
}
