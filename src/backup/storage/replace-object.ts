import type { StoreAbilities } from "../s3/abilities.js";
import type { AskOptions } from "../s3/asker.js";
import type { Bucket } from "../s3/bucket.js";

interface ReplaceObjectOptions extends AskOptions {
  /** Of the object that is meant. */
  readonly etag: string;
  /**
   * Where the store can't replace on condition it is asked before, and one of two at a time may go unseen.
   */
  readonly abilities: StoreAbilities;
}

/**
 * Replaces an object if it is still the one with this ETag.
 * @returns the new ETag; undefined: it is another one
 */
export async function replaceObject(
  bucket: Bucket,
  key: string,
  bytes: Uint8Array,
  { abilities, ...options }: ReplaceObjectOptions,
): Promise<string | undefined> {
  if (abilities.conditionalReplace) return await bucket.replaceIfUnchanged(key, bytes, options);
  const found = await bucket.find(key, options);
  if (found?.etag !== options.etag) return undefined;
  return await bucket.put(key, bytes, options);
}
