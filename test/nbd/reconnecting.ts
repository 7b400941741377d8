import { expect } from "vitest";
import type { NbdClient } from "../../src/nbd/index.js";
import { CHUNK, COMMAND } from "../../src/nbd/wire/constants.js";
import { chunk, dataAt, type Peer, statusPayload } from "../support/mock-server.js";
import { pattern } from "./servers.js";

/** A client that comes back soon. */
export const RECONNECT = { attempts: 3, delayMs: 1, maxDelayMs: 5 };

/** Answers reads and block status as long as the client wants. */
export async function serve(peer: Peer): Promise<void> {
  while (true) {
    const { command, cookie, offset, length } = await peer.request();
    if (command === COMMAND.DISC) return;
    if (command === COMMAND.READ)
      peer.send(chunk(cookie, CHUNK.OFFSET_DATA, dataAt(offset, pattern(offset, length))));
    else if (command === COMMAND.BLOCK_STATUS)
      peer.send(chunk(cookie, CHUNK.BLOCK_STATUS, statusPayload(1, [length, 0])));
    else peer.send(chunk(cookie, CHUNK.NONE));
  }
}

export async function expectRead(client: NbdClient, offset: number, length: number): Promise<void> {
  const target = Buffer.alloc(length, 0xee);
  await client.read(offset, target);
  expect(target.equals(pattern(offset, length))).toBe(true);
}
