import type { StoreRoot } from "../storage/stored-folder.js";
import type { StoreWriting } from "../storage/stored-writing.js";
import { abilitiesIn } from "./marker.js";
import { MANIFEST } from "./read-manifest.js";

/**
 * Runs `work` as the only writer of a domain in an object store. Removes first what dead runs have left.
 * @param name of the domain's folder
 * @throws {PreconditionError} `E_LOCKED`: another process writes this domain's points
 */
export async function writeInStore<T>(
  store: StoreRoot,
  name: string,
  work: (writing: StoreWriting) => Promise<T>,
  signal: AbortSignal | undefined,
): Promise<T> {
  // A repository that another program has copied there does not tell.
  const abilities = (await abilitiesIn(store)) ?? (await store.probe());
  const writing = await store.write(name, { abilities, manifest: MANIFEST, signal });
  try {
    await writing.clearLeftovers({ signal });
    store.refresh(name);
    return await work(writing);
  } finally {
    store.refresh(name);
    await writing.release();
  }
}
