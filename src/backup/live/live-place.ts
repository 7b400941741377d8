import { join } from "node:path";
import { PreconditionError } from "../base/errors.js";
import { isMissing } from "../host/durable-files.js";
import { ChangeablePath, unchangeablePath } from "../host/unchangeable-path.js";

/**
 * QEMU's user is let in to a socket there, and libvirt starts a guest on what lies there: nobody else may
 * swap it.
 * @param place a folder without links in its path
 * @throws {PreconditionError} `E_LIVE_PLACE`: another user than root and this one can change it
 */
export async function refuseChangeable(place: string): Promise<void> {
  try {
    await unchangeablePath(join(place, ".nbdpull-"), [0, process.geteuid?.() ?? 0]);
  } catch (error) {
    if (isMissing(error)) return;
    if (!(error instanceof ChangeablePath)) throw error;
    const message = `${place} is no place for a guest that runs from a restore point, because ${error.who} can change ${error.folder}: nothing was made. Name a folder that only root or you can change`;
    throw new PreconditionError("E_LIVE_PLACE", message, { cause: error, details: { path: place } });
  }
}
