import { lstat } from "node:fs/promises";
import { UsageError } from "../base/errors.js";
import { withoutSecrets } from "../base/without-secrets.js";
import { isMissing } from "./durable-files.js";

/**
 * Throws for what looks like an address of something else than a file of this host: `s3:bucket/x`,
 * `sftp://host/x`, `user@host:/x`. As with rsync, that is a colon before the first slash. What exists under
 * such a name is meant.
 * @param of what the path is: repositories may be in object stores too, images may not
 * @throws {UsageError} `E_SCHEME`
 */
export async function refuseAddress(path: string, of: "repository" | "image"): Promise<void> {
  const [, scheme] = /^([^/:]+):/.exec(path) ?? [];
  if (scheme === undefined) return;
  const isThere = await lstat(path).then(
    () => true,
    (error: unknown) => !isMissing(error),
  );
  if (isThere) return;
  const shown = withoutSecrets(path);
  const isImage = of === "image";
  const hint =
    scheme === "s3" && !isImage ? `(Did you mean s3://${shown.slice(3).replace(/^\/+/, "")}?)` : undefined;
  const known = isImage
    ? "images are written to paths of this host only"
    : "only paths of this host and object stores (s3://BUCKET/PREFIX) are known";
  const message = `${shown} looks like an address ("${scheme}:"), and ${known}: mount it here (sshfs, NFS) and name that folder. A file of that name is ./${shown}${hint === undefined ? "" : ` ${hint}`}`;
  throw new UsageError("E_SCHEME", message, {
    details: { path: shown, ...(hint === undefined ? {} : { hint }) },
  });
}
