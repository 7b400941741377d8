import { PreconditionError, UsageError } from "../base/errors.js";
import { namesStore } from "../storage/open-store.js";

/** What works on a folder of this machine only, and what does instead for a repository in an object store. */
const INSTEAD = {
  repair:
    "take a full backup instead (nbdpull backup --level full), which begins a new chain; to mend its points, fetch it with a program that copies every object (rclone copy), and repair that folder",
} as const;

/**
 * Call it before something is done that only a folder of this machine allows.
 * @param path of a repository
 * @param command as the user names it; undefined: a part of the program
 * @throws {PreconditionError} `E_STORE_READ_ONLY`: it is the address of an object store
 */
export function refuseStore(path: string, command?: keyof typeof INSTEAD): void {
  if (!namesStore(path)) return;
  const what =
    command === undefined
      ? "only a folder of this machine can be changed so"
      : `${command} needs a folder of this machine: ${INSTEAD[command]}`;
  const message = `${path} lies in an object store, and ${what}. Nothing was changed`;
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
