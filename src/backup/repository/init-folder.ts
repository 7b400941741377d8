import { hasCode, UsageError } from "../base/errors.js";
import { makeFolders } from "../host/durable-files.js";
import { HeldFolder } from "../host/held-folder.js";
import { LOST_AND_FOUND, MARKER } from "./folder-name.js";
import { newMarker } from "./marker.js";

/**
 * Makes a repository at `path`, if the path does not exist or is an empty folder. One that is there stays as
 * it is.
 * @throws {UsageError} `E_NOT_A_REPOSITORY`: `path` is something else
 */
export async function initFolder(path: string): Promise<void> {
  await using folder = await newOrExisting(path);
  const present = await folder.names();
  if (present.includes(MARKER)) return;
  if (present.some((name) => !name.startsWith(".") && name !== LOST_AND_FOUND)) throw notARepository(path);
  // Another process may make it meanwhile, too.
  await folder.createWhole(MARKER, newMarker());
  await folder.sync();
}

/** The folder at `path`, which is created if missing. */
async function newOrExisting(path: string): Promise<HeldFolder> {
  try {
    await makeFolders(path);
    return await HeldFolder.open(path);
  } catch (error) {
    if (hasCode(error, "EEXIST") || hasCode(error, "ENOTDIR")) throw notARepository(path);
    throw error;
  }
}

function notARepository(path: string): UsageError {
  const message = `${path} is not empty and not a repository: name an empty folder, a new one, or a repository`;
  return new UsageError("E_NOT_A_REPOSITORY", message, { details: { path } });
}
