import { lstat } from "node:fs/promises";
import { UsageError } from "../base/errors.js";
import { isMissing } from "./durable-files.js";

/**
 * Throws for what looks like an address of something else than a file of this host: `s3:bucket/x`,
 * `sftp://host/x`, `user@host:/x`. As with rsync, that is a colon before the first slash. What exists under
 * such a name is meant.
 * @throws {UsageError} `E_SCHEME`
 */
export async function refuseAddress(path: string): Promise<void> {
  const [, scheme] = /^([^/:]+):/.exec(path) ?? [];
  if (scheme === undefined) return;
  const isThere = await lstat(path).then(
    () => true,
    (error: unknown) => !isMissing(error),
  );
  if (isThere) return;
  const meant = scheme === "s3" ? ` (Did you mean s3://${path.slice(3).replace(/^\/+/, "")}?)` : "";
  const message = `${path} looks like an address ("${scheme}:"), and only paths of this host and object stores (s3://BUCKET/PREFIX) are known: mount it here (sshfs, NFS) and name that folder. A file of that name is ./${path}${meant}`;
  throw new UsageError("E_SCHEME", message, { details: { path } });
}
