/** A mock server with a correct handshake, whose replies the test makes from the requests. */

import { expect } from "vitest";
import { CHUNK, COMMAND, TRANSMISSION } from "../../src/nbd/wire/constants.js";
import { pattern } from "../nbd/servers.js";
import {
  chunk,
  dataAt,
  type ExportFacts,
  handshake,
  MockServer,
  type Peer,
  type TransmissionRequest,
  u32,
  u64,
} from "./mock-server.js";

/** An export that doesn't offer DF, so that replies may come in fragments. */
export const FRAGMENTED = { flags: TRANSMISSION.HAS_FLAGS | TRANSMISSION.READ_ONLY };

export const DIRTY = "qemu:dirty-bitmap:b0";

export const CONTEXTS = { contexts: ["base:allocation", DIRTY] };

export type Reply = (
  request: TransmissionRequest,
  peer: Peer,
) => Uint8Array | undefined | Promise<Uint8Array | undefined>;

/** Sends what `reply` returns for each request. */
export function replying(reply: Reply, facts: ExportFacts = FRAGMENTED) {
  return MockServer.start(async (peer) => {
    await handshake(peer, facts);
    while (true) {
      const request = await peer.request();
      if (request.command === COMMAND.DISC) return;
      const bytes = await reply(request, peer);
      if (bytes !== undefined) peer.send(bytes);
    }
  });
}

export const data = (request: TransmissionRequest, start: number, end: number, done = false) => {
  const at = request.offset + start;
  return chunk(request.cookie, CHUNK.OFFSET_DATA, dataAt(at, pattern(at, end - start)), done);
};

export const hole = (request: TransmissionRequest, start: number, end: number, done = false) =>
  chunk(
    request.cookie,
    CHUNK.OFFSET_HOLE,
    Buffer.concat([u64(request.offset + start), u32(end - start)]),
    done,
  );

export const end = (request: TransmissionRequest) => chunk(request.cookie, CHUNK.NONE);

export const whole = (request: TransmissionRequest) => data(request, 0, request.length, true);

export const PROTOCOL = {
  name: "ProtocolError",
  code: "NBD_PROTOCOL",
  message: expect.stringMatching(/^the server sent/),
};
