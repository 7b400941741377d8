import { BackupError, PreconditionError, UsageError } from "../base/errors.js";
import { openStore } from "../storage/open-store.js";
import type { StoreAbilities, StoreRoot } from "../storage/stored-folder.js";
import { MARKER } from "./folder-name.js";
import { newMarker, readMarker } from "./marker.js";

/** A repository that was made just now. */
interface InitializedStore {
  readonly id: string;
  readonly abilities: StoreAbilities;
}

interface SignalOptions {
  /** Ends every request to the store. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Makes a repository below a prefix of an object store, when the store was found to do what it needs.
 * @param address `s3://BUCKET/PREFIX`
 * @throws {PreconditionError} `E_REPOSITORY_EXISTS`, also if another process makes it meanwhile;
 *   `E_S3_LACKS`: the store can't hold one
 * @throws {UsageError} `E_NOT_A_REPOSITORY`: something else is there
 * @throws as `openStore`
 */
export async function initStore(address: string, options: SignalOptions = {}): Promise<InitializedStore> {
  const root = await openStore(address, options);
  try {
    return await initIn(root, address);
  } finally {
    await root.close();
  }
}

/**
 * Has the store end uploads below the address that were begun a week ago: of a domain that is never backed up
 * again nobody else would.
 * @returns whether a rule of the bucket was put there; false if there was one
 * @throws {PreconditionError} `E_S3_ACCESS`, `E_S3_LACKS`, `E_S3_RULES`
 * @throws as `openStore`
 */
export async function endOldUploads(address: string, options: SignalOptions = {}): Promise<boolean> {
  const root = await openStore(address, options);
  try {
    return await root.endOldUploads();
  } finally {
    await root.close();
  }
}

async function initIn(root: StoreRoot, address: string): Promise<InitializedStore> {
  const known = await readMarker(root);
  if (known !== undefined) throw exists(address, known);
  if (!(await root.isEmpty())) {
    const message = `${address} is not empty and not a repository: name another prefix`;
    throw new UsageError("E_NOT_A_REPOSITORY", message, { details: { path: address } });
  }
  const abilities = await root.probe().catch(async (error: unknown) => {
    // Another process has made it meanwhile, and removed what this one was trying.
    const made = await readMarker(root).catch(() => undefined);
    throw made === undefined ? error : exists(address, made);
  });
  const marker = newMarker(abilities);
  await root.create(MARKER, marker, abilities);
  const id = await readMarker(root);
  if (id === undefined) {
    const message = `${address}/${MARKER} was written, and the store does not have it: look at the store, and try again`;
    throw new BackupError("E_S3_FAILED", message, { details: { path: address } });
  }
  // Another process has made it meanwhile.
  if (!marker.includes(id)) throw exists(address, id);
  // Now only: the objects of a process that tries the store at the same time look the same.
  await root.removeTrials().catch(() => undefined);
  return { id, abilities };
}

function exists(path: string, id: string): PreconditionError {
  const message = `${path} is a repository already (its id is ${id}), and stays as it is`;
  return new PreconditionError("E_REPOSITORY_EXISTS", message, { details: { path, id } });
}
