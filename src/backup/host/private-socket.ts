import { lstat, unlink } from "node:fs/promises";
import { connect } from "node:net";
import { dirname } from "node:path";
import { PreconditionError, UsageError } from "../base/errors.js";
import { exists, isMissing } from "./durable-files.js";

/** The longest path of a Unix socket on Linux. */
const MAX_PATH_BYTES = 107;

/**
 * Frees `path` for a new socket: removes a socket that a dead server left.
 * @throws {UsageError} something else is at `path`, its folder doesn't exist, or the path is too long
 * @throws {PreconditionError} a server listens there
 */
export async function clearSocketPath(path: string): Promise<void> {
  if (Buffer.byteLength(path) > MAX_PATH_BYTES) {
    const message = `${path}: the path of a socket has ${MAX_PATH_BYTES} bytes at most: name a shorter one`;
    throw new UsageError("E_SOCKET", message, { details: { path } });
  }
  if (!(await exists(dirname(path)))) {
    const message = `the folder of ${path} does not exist: create it, or name another path`;
    throw new UsageError("E_NO_FOLDER", message, { details: { path } });
  }
  const found = await lstat(path).catch((error: unknown) => {
    if (isMissing(error)) return undefined;
    throw error;
  });
  if (found === undefined) return;
  if (!found.isSocket()) {
    const message = `${path} exists and is not a socket: name a path that does not exist`;
    throw new UsageError("E_SOCKET", message, { details: { path } });
  }
  if (!(await isStale(path))) throw addressInUse(path);
  await unlink(path).catch((error: unknown) => {
    if (!isMissing(error)) throw error;
  });
}

/**
 * Calls `listen`, which must bind a Unix socket before it first waits, so that only this user can ever
 * connect. If `chmod` followed instead, others could connect before it.
 */
export function bindPrivately<T>(listen: () => Promise<T>): Promise<T> {
  const before = process.umask(0o177);
  try {
    return listen();
  } finally {
    process.umask(before);
  }
}

/** The error for an address that another program uses. */
export function addressInUse(address: string, cause?: unknown): PreconditionError {
  const message = `another program listens on ${address}: end it, or choose another address`;
  return new PreconditionError("E_ADDRESS_IN_USE", message, { cause, details: { address } });
}

/** Whether no program listens on the socket. Every outcome other than a refusal means that one does. */
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
