/**
 * Tells whether the server of a Unix socket can still be the one of an earlier connection. A socket belongs
 * to the process that made it: another process has to make it anew.
 */

import { stat } from "node:fs/promises";
import { ConnectionError } from "./errors.js";
import { describe } from "./socket.js";
import type { Endpoint } from "./uri.js";

export class SameServer {
  readonly #endpoint: Endpoint;
  readonly #made: string | undefined;

  private constructor(endpoint: Endpoint, made: string | undefined) {
    this.#endpoint = endpoint;
    this.#made = made;
  }

  /** To be called before the first connection. */
  static async of(endpoint: Endpoint): Promise<SameServer> {
    return new SameServer(endpoint, await madeAt(endpoint));
  }

  /**
   * To be called after another connection was made.
   * @throws {ConnectionError} NBD_EXPORT_CHANGED: the socket was made anew. Over TCP it can't be told.
   */
  async assert(): Promise<void> {
    if (this.#endpoint.kind !== "unix") return;
    const made = await madeAt(this.#endpoint);
    if (made !== undefined && made === this.#made) return;
    const message = `${describe(this.#endpoint)} was made anew, so another server listens there, and what it serves may be of another moment`;
    throw new ConnectionError("NBD_EXPORT_CHANGED", message);
  }

  /** Whether a failure to connect shows that the server is gone. */
  isGone(error: unknown): boolean {
    if (this.#endpoint.kind !== "unix") return false;
    if (!(error instanceof ConnectionError) || error.code !== "NBD_CONNECT_FAILED") return false;
    // Its queue of clients is full.
    return (error.cause as NodeJS.ErrnoException | undefined)?.code !== "EAGAIN";
  }
}

/** What a new socket at the same path would not have in common with it; undefined if there is none. */
async function madeAt(endpoint: Endpoint): Promise<string | undefined> {
  if (endpoint.kind !== "unix") return undefined;
  // A connection changes neither; the number of a file may be used again at once, its time is not.
  const found = await stat(endpoint.path, { bigint: true }).catch(() => undefined);
  return found && `${found.dev}:${found.ino}:${found.mtimeNs}`;
}
