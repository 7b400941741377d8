/** The repository that a command adds points to. It has to be there, unless the user wants a new one. */

import { PreconditionError } from "../src/backup/base/errors.js";
import { shellWord } from "../src/backup/base/shell-word.js";
import { refuseAddress } from "../src/backup/host/local-path.js";
import { Repository } from "../src/backup/repository/repository.js";
import { namesStore } from "../src/backup/storage/open-store.js";
import type { CreateOptions } from "./options.js";

/**
 * Throws if there is no repository, since a mistyped path, or one on which nothing is mounted, would get a
 * new one and a full backup of everything. With `--create` it is made later, when the first point is.
 * @throws {UsageError} `E_SCHEME`: the path looks like an address
 * @throws {PreconditionError} `E_NO_REPOSITORY`, or as `openStore` for a store
 */
export async function requireRepository(
  path: string,
  { create }: CreateOptions,
  signal: AbortSignal,
): Promise<void> {
  if (!namesStore(path)) await refuseAddress(path, "repository");
  if (create || (await Repository.openIfThere(path, { signal }))) return;
  const doubt = namesStore(path)
    ? "are the bucket and the prefix right?"
    : "is its file system mounted, is the path right?";
  const message = `there is no repository at ${path}. If there should be one: ${doubt} To make a new one: nbdpull init ${shellWord(path)} (in scripts: --create)`;
  throw new PreconditionError("E_NO_REPOSITORY", message, { details: { path } });
}
