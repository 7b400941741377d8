/** A disk behind a mock server whose replies a test can delay, reorder and break. */

import { CHUNK, COMMAND } from "../../src/nbd/wire/constants.js";
import {
  COMMON_FLAGS,
  chunk,
  dataAt,
  type ExportFacts,
  handshake,
  MockServer,
  type Peer,
  statusPayload,
  type TransmissionRequest,
} from "./mock-server.js";

/** The flags of a context, one per block. */
export interface MockContext {
  readonly name: string;
  /** The block size in bytes. */
  readonly unit: number;
  readonly flags: readonly number[];
}

export interface MockDisk {
  readonly content: Buffer;
  readonly contexts?: readonly MockContext[];
  readonly facts?: ExportFacts;
  /** The most extents of a context in one reply. */
  readonly extentsInReply?: number;
  /** The most bytes that one reply describes. */
  readonly statusBytes?: number;
  /**
   * Called for each request; `answer` sends the correct reply. By default all requests are answered at once.
   */
  readonly onRequest?: (request: TransmissionRequest, answer: () => void, peer: Peer, index: number) => void;
}

export function serveDisk(disk: MockDisk): Promise<MockServer> {
  const { content, contexts = [] } = disk;
  const facts = {
    size: content.length,
    flags: COMMON_FLAGS,
    contexts: contexts.map(({ name }) => name),
    ...disk.facts,
  };
  return MockServer.start(async (peer, index) => {
    const asked = new Set<string>();
    await handshake(peer, {
      ...facts,
      onOption: (_option, data) => {
        for (const { name } of contexts) if (data.includes(name)) asked.add(name);
      },
    });
    const granted = contexts.flatMap((context, at) =>
      asked.has(context.name) ? [{ ...context, id: at + 1 }] : [],
    );
    while (true) {
      const request = await peer.request();
      if (request.command === COMMAND.DISC) return;
      const answer = () => peer.send(replyTo(request, disk, granted));
      if (disk.onRequest) disk.onRequest(request, answer, peer, index);
      else answer();
    }
  });
}

function replyTo(
  { command, cookie, offset, length }: TransmissionRequest,
  { content, extentsInReply = 8192, statusBytes = 2 ** 32 }: MockDisk,
  contexts: readonly (MockContext & { readonly id: number })[],
): Buffer {
  if (command === COMMAND.READ)
    return chunk(cookie, CHUNK.OFFSET_DATA, dataAt(offset, content.subarray(offset, offset + length)));
  const chunks = contexts.map(({ id, unit, flags }, at) => {
    const extents: [number, number][] = [];
    const end = offset + Math.min(length, statusBytes);
    for (let from = offset; from < end && extents.length < extentsInReply; ) {
      const block = Math.floor(from / unit);
      let next = block + 1;
      while (next * unit < end && flags[next] === flags[block]) next += 1;
      extents.push([Math.min(next * unit, end) - from, flags[block] ?? 0]);
      from = next * unit;
    }
    return chunk(cookie, CHUNK.BLOCK_STATUS, statusPayload(id, ...extents), at === contexts.length - 1);
  });
  return Buffer.concat(chunks);
}
