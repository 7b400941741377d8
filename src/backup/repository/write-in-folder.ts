import { hasCode } from "../base/errors.js";
import { isMissing } from "../host/durable-files.js";
import { HeldFolder } from "../host/held-folder.js";
import { type HeldLock, takeLock } from "./domain-lock.js";
import { finishJournal } from "./finish-prune.js";
import { folderNameOf, LOST_AND_FOUND, MARKER } from "./folder-name.js";
import { removeLeftovers } from "./leftovers.js";
import { noRepository } from "./marker.js";

interface WriteOptions {
  readonly signal?: AbortSignal | undefined;
  /** What becomes of partial points that dead runs have left; default: they are removed. */
  readonly clear?: ((folder: HeldFolder) => Promise<void>) | undefined;
}

/**
 * Runs `work` as the only writer of a domain in a folder of this machine. Finishes or undoes first what a
 * dead prune has left.
 * @param path of the repository
 * @throws {PreconditionError} `E_LOCKED`: another process writes this domain's points; `E_NO_REPOSITORY`: the
 *   repository is gone, as from a file system that was unmounted
 */
export async function writeInFolder<T>(
  path: string,
  domain: string,
  work: (held: HeldLock) => Promise<T>,
  { signal, clear = removeLeftovers }: WriteOptions,
): Promise<T> {
  const name = folderNameOf(domain);
  const held = await takeLock(() => makeDomain(path, name), domain, signal);
  try {
    await finishJournal(held.folder, held.assertHeld);
    await clear(held.folder);
    return await work(held);
  } finally {
    await held.release();
    await using root = await HeldFolder.open(path);
    // Removes the folder only if it is empty, as after a first point that failed.
    if (name !== LOST_AND_FOUND) await root.removeEmpty(name).catch(() => undefined);
  }
}

/** Nothing is made where the repository is gone: a folder would lie in the way of what is mounted there. */
async function makeDomain(path: string, name: string): Promise<HeldFolder> {
  await using root = await HeldFolder.open(path).catch((error: unknown) => {
    throw isMissing(error) ? noRepository(path) : error;
  });
  if (!(await root.find(MARKER))) throw noRepository(path);
  for (;;) {
    const folder = await root.folder(name);
    if (folder) return folder;
    await root.makeFolder(name).catch((error: unknown) => {
      if (!hasCode(error, "EEXIST")) throw error;
    });
    await root.sync();
  }
}
