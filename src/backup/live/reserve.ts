import { PreconditionError } from "../base/errors.js";
import { freeBytes } from "../host/free-bytes.js";
import type { HeldFolder } from "../host/held-folder.js";

/** What a rehearsal leaves to others where its images grow. */
const RESERVE_BYTES = 256 * 1024 * 1024;

/**
 * Looked at for as long as the guest runs, which may write without end.
 * @throws {PreconditionError} `E_REHEARSAL`: what it writes has used up the room
 */
export async function refuseFull(folder: HeldFolder): Promise<void> {
  const free = await freeBytes(folder.reach);
  if (free >= RESERVE_BYTES) return;
  const message = `${folder.path} has only ${free} bytes free, and ${RESERVE_BYTES} are left to others, so the rehearsal was ended: make room, or name another folder with --work`;
  throw new PreconditionError("E_REHEARSAL", message, { details: { path: folder.path, free } });
}
