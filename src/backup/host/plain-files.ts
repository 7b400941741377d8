/** Regular files at paths that others may have changed: no link at the end of a path is followed. */

import { closeSync, constants, fstatSync, openSync, readlinkSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { DamageError, hasCode } from "../base/errors.js";

/** Read and written by their owner only. */
export const PRIVATE_FILE = 0o600;
const PIECE_BYTES = 1024 * 1024;
/** A path through a descriptor of this process: the descriptor, and the names below the folder. */
const HELD = /^\/proc\/self\/fd\/(\d+)(?=\/|$)/;

/**
 * Opens a file to be read, without following a link at the end of the path, and without waiting for the
 * writer of a FIFO.
 * @throws the file system's error: ELOOP for a link
 */
export async function openPlain(path: string): Promise<FileHandle> {
  return await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
}

/**
 * Creates a file for its owner only; nothing may have that name, not even a link.
 * @throws the file system's error: EEXIST
 */
export async function createPrivate(path: string): Promise<FileHandle> {
  return await open(path, "wx", PRIVATE_FILE);
}

/**
 * Like {@link openPlain}, for a thread that waits: only a regular file, since nothing could end the waiting.
 * @returns its descriptor
 * @throws {DamageError} `E_LINK`: it is a link, or no regular file
 */
export function openPlainNow(path: string): number {
  let file: number;
  try {
    file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    throw hasCode(error, "ELOOP") || hasCode(error, "ENXIO") ? notAFile(path, error) : error;
  }
  if (fstatSync(file).isFile()) return file;
  closeSync(file);
  throw notAFile(path);
}

/**
 * The SHA-256 of a regular file, in hexadecimal digits. A link at the end of the path is not followed. The
 * file may be a hole of any size that somebody has made, so give a signal if others can write to it.
 * @throws {DamageError} `E_LINK`: it is a link, or no regular file
 * @throws the signal's reason
 */
export async function sha256OfFile(path: string, signal?: AbortSignal): Promise<string> {
  const file = await openPlain(path).catch((error: unknown) => {
    throw hasCode(error, "ELOOP") ? notAFile(path, error) : error;
  });
  try {
    if (!(await file.stat()).isFile()) throw notAFile(path);
    // Loaded here: it takes a pull that needs none 3 ms.
    const hash = process.getBuiltinModule("node:crypto").createHash("sha256");
    for await (const bytes of bytesOf(file)) {
      signal?.throwIfAborted();
      hash.update(bytes);
    }
    return hash.digest("hex");
  } finally {
    await file.close();
  }
}

/**
 * Copies the bytes of a regular file into a new one, and nothing else of it: neither its mode nor its owner.
 * Only the owner of the new file may read and write it.
 * @param most bytes that are copied; the file may have been exchanged for a longer one
 * @throws the file system's error: EEXIST; the signal's reason
 */
export async function copyPrivately(
  from: string,
  to: string,
  { most, signal }: { readonly most: number; readonly signal?: AbortSignal | undefined },
): Promise<void> {
  await using source = await openPlain(from);
  await using target = await createPrivate(to);
  let left = most;
  for await (const bytes of bytesOf(source)) {
    signal?.throwIfAborted();
    await target.writeFile(bytes.subarray(0, left));
    left -= bytes.length;
    if (left <= 0) return;
  }
}

/** The content of a file, piece by piece. A piece is valid until the next one is asked for. */
async function* bytesOf(file: FileHandle): AsyncGenerator<Buffer> {
  const buffer = Buffer.allocUnsafe(PIECE_BYTES);
  for (let position = 0; ; ) {
    const { bytesRead } = await file.read(buffer, 0, buffer.length, position);
    if (bytesRead === 0) return;
    yield buffer.subarray(0, bytesRead);
    position += bytesRead;
  }
}

function notAFile(path: string, cause?: unknown): DamageError {
  const shown = shownPath(path);
  return new DamageError("E_LINK", `${shown} is not a regular file`, { cause, details: { path: shown } });
}

/** A path for messages: a held folder's own path in place of its descriptor. */
export function shownPath(path: string): string {
  return path.replace(HELD, (held) => {
    try {
      return readlinkSync(held);
    } catch {
      return held;
    }
  });
}
