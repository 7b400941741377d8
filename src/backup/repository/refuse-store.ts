import { PreconditionError } from "../base/errors.js";
import { namesStore } from "../storage/open-store.js";

/**
 * Call it before something is written to a repository, or asked that only a folder can tell.
 * @param path of a repository
 * @throws {PreconditionError} `E_STORE_READ_ONLY`: it is the address of an object store
 */
export function refuseStore(path: string): void {
  if (!namesStore(path)) return;
  const message = `${path} lies in an object store, where commands that only read points work (init, points, verify, restore, serve, report, stats, diff, and copy from there): write to a folder, and copy it to the store with another program`;
  throw new PreconditionError("E_STORE_READ_ONLY", message, { details: { path } });
}
