import type { StoreAbilities } from "../s3/abilities.js";
import type { AskOptions } from "../s3/asker.js";
import type { Bucket } from "../s3/bucket.js";

interface CreateObjectOptions extends AskOptions {
  /** Where the store can't create on condition it is asked before, and one of two at a time may go unseen. */
  readonly abilities: StoreAbilities;
}

/**
 * Creates an object unless one has its key.
 * @returns whether these bytes are there now
 */
export async function createObject(
  bucket: Bucket,
  key: string,
  bytes: Uint8Array,
  { abilities, ...options }: CreateObjectOptions,
): Promise<boolean> {
  if (abilities.conditionalCreate) return await bucket.putIfAbsent(key, bytes, options);
  if (await bucket.find(key, options)) return false;
  await bucket.put(key, bytes, options);
  return true;
}
