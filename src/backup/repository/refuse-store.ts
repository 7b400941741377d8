import { PreconditionError, UsageError } from "../base/errors.js";
import { namesStore } from "../storage/open-store.js";

/**
 * Call it before something is done that only a folder of this machine allows.
 * @param path of a repository
 * @throws {PreconditionError} `E_STORE_READ_ONLY`: it is the address of an object store
 */
export function refuseStore(path: string): void {
  if (!namesStore(path)) return;
  const message = `${path} lies in an object store, and only a folder of this machine can be changed so. Nothing was changed`;
  throw new PreconditionError("E_STORE_READ_ONLY", message, { details: { path } });
}

/**
 * A raw image in a store would be as large as the disk, since an object has no holes.
 * @param path of a repository
 * @throws {UsageError} `E_STORE_FORMAT`
 */
export function refuseRawInStore(path: string, format: "qcow2" | "raw"): void {
  if (format !== "raw" || !namesStore(path)) return;
  const message = `${path} lies in an object store, where a raw image would be as large as its disk: use --format qcow2`;
  throw new UsageError("E_STORE_FORMAT", message, { details: { path, format } });
}
