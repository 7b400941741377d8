import { PreconditionError, UsageError } from "../base/errors.js";
import { openStore } from "../storage/open-store.js";
import type { StoreAbilities } from "../storage/stored-folder.js";
import { MARKER } from "./folder-name.js";
import { newMarker, readMarker } from "./marker.js";

/** A repository that was made just now. */
interface InitializedStore {
  readonly id: string;
  readonly abilities: StoreAbilities;
}

/**
 * Makes a repository below a prefix of an object store, when the store was found to do what it needs.
 * @param address `s3://BUCKET/PREFIX`
 * @throws {PreconditionError} `E_REPOSITORY_EXISTS`; `E_S3_LACKS`: the store can't hold one
 * @throws {UsageError} `E_NOT_A_REPOSITORY`: something else is there
 * @throws as `openStore`
 */
export async function initStore(address: string): Promise<InitializedStore> {
  await using root = await openStore(address);
  const known = await readMarker(root);
  if (known !== undefined) throw exists(address, known);
  if (!(await root.isEmpty())) {
    const message = `${address} is not empty and not a repository: name another prefix`;
    throw new UsageError("E_NOT_A_REPOSITORY", message, { details: { path: address } });
  }
  const abilities = await root.probe();
  await root.create(MARKER, newMarker(abilities), abilities);
  // Another process may have made it meanwhile.
  const id = (await readMarker(root)) ?? "";
  return { id, abilities };
}

function exists(path: string, id: string): PreconditionError {
  const message = `${path} is a repository already (its id is ${id}), and stays as it is`;
  return new PreconditionError("E_REPOSITORY_EXISTS", message, { details: { path, id } });
}
