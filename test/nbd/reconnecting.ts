import { expect } from "vitest";
import type { NbdClient } from "../../src/nbd/index.js";
import { CHUNK, COMMAND } from "../../src/nbd/wire/constants.js";
import { whole } from "../support/mock-replies.js";
import { chunk, type Peer, statusPayload, type TransmissionRequest } from "../support/mock-server.js";
import { pattern } from "./servers.js";

/** A client that comes back soon. */
export const RECONNECT = { attempts: 3, delayMs: 1, maxDelayMs: 5 };

/** Answers reads, by default with the right bytes, and block status as long as the client wants. */
export async function serve(
  peer: Peer,
  reply: (read: TransmissionRequest) => Uint8Array = whole,
): Promise<void> {
  while (true) {
    const request = await peer.request();
    const { command, cookie, length } = request;
    if (command === COMMAND.DISC) return;
    if (command === COMMAND.READ) peer.send(reply(request));
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
