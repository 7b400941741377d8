import { lstat, unlink } from "node:fs/promises";
import { connect } from "node:net";
import { dirname } from "node:path";
import { PreconditionError, UsageError } from "../base/errors.js";
import { exists, isMissing } from "./durable-files.js";

/** What the path of a Unix socket may have, on Linux. */
const MAX_PATH_BYTES = 107;

/**
 * Makes way for a socket at `path`: one that a dead server left is removed.
 * @throws {UsageError} something else is there, its folder is not there, or the path is too long
 * @throws {PreconditionError} a server listens there
 */
export async function clearSocketPath(path: string): Promise<void> {
  if (Buffer.byteLength(path) > MAX_PATH_BYTES) {
    const message = `${path}: the path of a socket has ${MAX_PATH_BYTES} bytes at most: name a shorter one`;
    throw new UsageError("E_SOCKET", message, { details: { path } });
  }
  if (!(await exists(dirname(path)))) {
    const message = `the folder that ${path} should be in is not there: make it, or name another path`;
    throw new UsageError("E_NO_FOLDER", message, { details: { path } });
  }
  const found = await lstat(path).catch((error: unknown) => {
    if (isMissing(error)) return undefined;
    throw error;
  });
  if (found === undefined) return;
  if (!found.isSocket()) {
    const message = `${path} is there and no socket: name a path where nothing is`;
    throw new UsageError("E_SOCKET", message, { details: { path } });
  }
  if (!(await isStale(path))) throw addressInUse(path);
  await unlink(path).catch((error: unknown) => {
    if (!isMissing(error)) throw error;
  });
}

/**
 * Calls `listen`, which binds a Unix socket before it first waits, so that only this user may ever connect: with a
 * `chmod` after it others could be faster.
 */
export function bindPrivately<T>(listen: () => Promise<T>): Promise<T> {
  const before = process.umask(0o177);
  try {
    return listen();
  } finally {
    process.umask(before);
  }
}

/** Another program has the address. */
export function addressInUse(address: string, cause?: unknown): PreconditionError {
  const message = `another program listens on ${address}: end it, or choose another address`;
  return new PreconditionError("E_ADDRESS_IN_USE", message, { cause, details: { address } });
}

/** Whether nobody listens: any other answer than a refusal comes from somebody who does. */
function isStale(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect(path);
    probe.once("connect", () => {
      probe.destroy();
      resolve(false);
    });
    probe.once("error", (error) => {
      resolve((error as NodeJS.ErrnoException).code === "ECONNREFUSED" || isMissing(error));
    });
  });
}
