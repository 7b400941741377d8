import assert from "node:assert/strict";
import type { StoreRoot } from "../storage/stored-folder.js";
import type { StoredLeftovers, StoreWriting } from "../storage/stored-writing.js";
import { isPointId } from "./manifest.js";
import { abilitiesIn } from "./marker.js";
import { mergeState } from "./merged-manifest.js";
import type { PendingPoint } from "./pending-point.js";
import { MANIFEST } from "./read-manifest.js";
import { makeStoredPoint } from "./stored-point.js";
import { unsafeStore } from "./unsafe-store.js";

interface WriteOptions {
  readonly signal: AbortSignal | undefined;
  /** Ids of points that stay if a killed run had begun to make them. */
  readonly goOnWith?: ReadonlySet<string> | undefined;
  /** Told what is unsafe about writing to this store. */
  readonly onUnsafe?: ((warning: string) => void) | undefined;
}

/** How points are known there. */
const POINTS = { manifest: MANIFEST, isPoint: isPointId, mergeState };

/**
 * What runs have left of a domain's points, or have just begun.
 * @param name of the domain's folder
 */
export async function leftInStore(
  store: StoreRoot,
  name: string,
  signal: AbortSignal | undefined,
): Promise<readonly StoredLeftovers[]> {
  return await store.leftovers(name, { ...POINTS, signal });
}

/**
 * Runs `work` as the only writer of a domain in an object store. Removes first what dead runs have left.
 * @param name of the domain's folder
 * @throws {PreconditionError} `E_LOCKED`: another process writes this domain's points
 */
export async function writeInStore<T>(
  store: StoreRoot,
  name: string,
  work: (writing: StoreWriting) => Promise<T>,
  { signal, goOnWith, onUnsafe }: WriteOptions,
): Promise<T> {
  const recorded = await abilitiesIn(store);
  // A repository that another program has copied there does not tell.
  const abilities = recorded ?? (await store.probeConditions());
  const writing = await store.write(name, { abilities, ...POINTS, signal });
  try {
    const unsafe = unsafeStore(writing.abilities, recorded);
    if (unsafe !== undefined) onUnsafe?.(unsafe);
    await writing.clearLeftovers({ signal, goOnWith });
    store.refresh(name);
    return await work(writing);
  } finally {
    store.refresh(name);
    await writing.release();
  }
}

interface MakeOptions {
  /** How many images are made side by side, of this point and of others. */
  readonly imagesAtOnce: number | undefined;
  readonly signal: AbortSignal | undefined;
  readonly onUnsafe?: WriteOptions["onUnsafe"];
}

/**
 * Runs `work` with a pending point, as the only writer of the domain.
 * @param name of the domain's folder
 * @throws {PreconditionError} as `writeInStore`
 */
export async function makePointInStore<T>(
  store: StoreRoot,
  name: string,
  work: (point: PendingPoint) => Promise<T>,
  { imagesAtOnce, signal, onUnsafe }: MakeOptions,
): Promise<T> {
  const make = async (writing: StoreWriting): Promise<T> => {
    await using folder = await store.folder(name);
    // The lease lies in it.
    assert(folder, "the domain's folder is gone");
    return await makeStoredPoint(writing, work, { id: folder, imagesAtOnce, digestsBeside: true, signal });
  };
  return await writeInStore(store, name, make, { signal, onUnsafe });
}
