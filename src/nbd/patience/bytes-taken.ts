import type { Duplex } from "node:stream";

interface Handle {
  readonly bytesWritten: number;
  readonly writeQueueSize: number;
}

/**
 * Bytes that the operating system has taken from a socket for sending. Node reports a write only when all of
 * it has been taken, and a write of 32 MiB may take a slow peer minutes. Its own time-out of sockets looks at
 * the same numbers, which no public property shows. 0 after the socket was closed.
 * @param socket the plain one below TLS: the one above learns of it late
 */
export function bytesTaken(socket: Duplex): number {
  const { _handle: handle } = socket as Duplex & { readonly _handle?: Handle | null };
  return handle ? handle.bytesWritten - handle.writeQueueSize : 0;
}
