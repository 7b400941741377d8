import { hasCode } from "../base/errors.js";
import { isMissing } from "../host/durable-files.js";
import { HeldFolder } from "../host/held-folder.js";
import { namesStore, openStore } from "../storage/open-store.js";
import type { StoreRoot } from "../storage/stored-folder.js";
import { readMarker } from "./marker.js";

interface FoundRepository {
  readonly id: string;
  /** Undefined: it is a folder of this machine. The caller closes it. */
  readonly store: StoreRoot | undefined;
}

/**
 * Looks whether there is a repository at a path, or at an address in an object store.
 * @param options.signal ends every request to the store, also of what is found
 * @throws {DamageError} the marker file exists and cannot be read
 * @throws for an object store as `openStore`
 */
export async function findRepository(
  path: string,
  options: { readonly signal?: AbortSignal | undefined },
): Promise<FoundRepository | undefined> {
  if (namesStore(path)) {
    const store = await openStore(path, options);
    let id: string | undefined;
    try {
      id = await readMarker(store);
      return id === undefined ? undefined : { id, store };
    } finally {
      if (id === undefined) await store.close();
    }
  }
  const folder = await HeldFolder.open(path).catch((cause: unknown) => {
    if (isMissing(cause) || hasCode(cause, "ENOTDIR")) return undefined;
    throw cause;
  });
  await using _ = folder;
  const id = folder && (await readMarker(folder));
  return id === undefined ? undefined : { id, store: undefined };
}
