/** Handshakes for a mock server, and their outcome for a client. */

import { NbdClient } from "../../src/nbd/index.js";
import { OPTION, OPTION_REPLY } from "../../src/nbd/wire/constants.js";
import {
  answer,
  type ExportFacts,
  greeting,
  handshake,
  MockServer,
  optionReply,
  type Peer,
  type Script,
} from "./mock-server.js";

export const FAST = { connectTimeoutMs: 150 };

/** Answers `option` with `replies`, and all options before it correctly. */
export function answering(option: number, replies: readonly Uint8Array[], facts: ExportFacts = {}): Script {
  return async (peer) => {
    peer.send(greeting());
    await peer.receive(4);
    while (true) {
      const request = await peer.option();
      if (request.option === option) {
        peer.send(...replies);
        await peer.gone();
      }
      peer.send(...answer(request.option, request.data, facts));
    }
  };
}

/** Records the client's options in order, until the client disconnects. */
export function recording(options: number[], facts: ExportFacts = {}): Script {
  return async (peer) => {
    await handshake(peer, { ...facts, onOption: (option) => options.push(option) });
    await peer.gone();
  };
}

export async function answeringUpTo(peer: Peer, last: number): Promise<void> {
  peer.send(greeting());
  await peer.receive(4);
  while (true) {
    const { option, data } = await peer.option();
    if (option === last) return;
    peer.send(...answer(option, data, {}));
  }
}

export const ack = (option: number) => optionReply(option, OPTION_REPLY.ACK);

export const go = (...infos: readonly Uint8Array[]) => [
  ...infos.map((info) => optionReply(OPTION.GO, OPTION_REPLY.INFO, info)),
  ack(OPTION.GO),
];

export const refuse = (option: number, error: number, text = "") =>
  optionReply(option, error, Buffer.from(text));

export async function connectTo(script: Script, options = {}): Promise<unknown> {
  await using mock = await MockServer.start(script);
  try {
    await using client = await NbdClient.connect(mock.uri, { ...FAST, ...options });
    return client.export;
  } catch (error) {
    return error;
  }
}
