import fc from "fast-check";
import { expect, it } from "vitest";
import { NbdClient, NbdError } from "../../src/nbd/index.js";
import { CHUNK, COMMAND, ERRNO, TRANSMISSION } from "../../src/nbd/wire/constants.js";
import { collect } from "../support/collect.js";
import {
  chunk,
  dataAt,
  errorPayload,
  handshake,
  MockServer,
  type Peer,
  statusPayload,
} from "../support/mock-server.js";
import { pattern } from "./servers.js";

const FLAGS =
  TRANSMISSION.HAS_FLAGS | TRANSMISSION.CAN_MULTI_CONN | TRANSMISSION.SEND_FLUSH | TRANSMISSION.SEND_DF;
const SIZE = 1024 * 1024;

/** How a connection ends. */
interface Death {
  /** The number of requests answered before. */
  readonly after: number;
  readonly how:
    | "hang up"
    | "hang up in a reply"
    | "shut down"
    | "say nothing"
    | "talk nonsense"
    | "no greeting";
}

const death: fc.Arbitrary<Death> = fc.record({
  after: fc.nat(12),
  how: fc.constantFrom(
    "hang up",
    "hang up in a reply",
    "shut down",
    "say nothing",
    "talk nonsense",
    "no greeting",
  ),
});

async function live(peer: Peer, death: Death | undefined): Promise<void> {
  if (death?.how === "no greeting") return peer.gone();
  await handshake(peer, { flags: FLAGS, contexts: ["base:allocation"] });
  for (let answered = 0; ; answered++) {
    const { command, cookie, offset, length } = await peer.request();
    if (command === COMMAND.DISC) return;
    if (command === COMMAND.WRITE) await peer.receive(length);
    const reply =
      command === COMMAND.READ
        ? chunk(cookie, CHUNK.OFFSET_DATA, dataAt(offset, pattern(offset, length)))
        : command === COMMAND.BLOCK_STATUS
          ? chunk(cookie, CHUNK.BLOCK_STATUS, statusPayload(1, [length, 0]))
          : chunk(cookie, CHUNK.NONE);
    if (death === undefined || answered < death.after) peer.send(reply);
    else if (death.how === "hang up") return;
    else if (death.how === "say nothing") return peer.gone();
    else if (death.how === "talk nonsense") peer.send(Buffer.alloc(100, "nonsense"));
    else if (death.how === "shut down") peer.send(chunk(cookie, CHUNK.ERROR, errorPayload(ERRNO.ESHUTDOWN)));
    else {
      peer.send(reply.subarray(0, reply.length - 5));
      return;
    }
  }
}

it("every promise settles, and all bytes read are right, however connections die", async () => {
  const scenario = fc.record({
    deaths: fc.array(death, { maxLength: 8 }),
    connections: fc.integer({ min: 1, max: 3 }),
    reconnect: fc.boolean(),
    abortAfterMs: fc.option(fc.nat(20), { nil: undefined }),
    closeAfterMs: fc.option(fc.nat(20), { nil: undefined }),
  });
  await fc.assert(
    fc.asyncProperty(scenario, async ({ deaths, connections, reconnect, abortAfterMs, closeAfterMs }) => {
      await using mock = await MockServer.start((peer, index) => live(peer, deaths[index]));
      const client = await NbdClient.connect(mock.uri, {
        metaContexts: ["base:allocation"],
        connections,
        connectTimeoutMs: 40,
        idleTimeoutMs: 40,
        ...(reconnect ? { reconnect: { attempts: 4, delayMs: 1, maxDelayMs: 4 } } : {}),
      }).catch(ours);
      if (client instanceof NbdError) return;
      const aborting = new AbortController();
      if (abortAfterMs !== undefined) setTimeout(() => aborting.abort(), abortAfterMs);
      const options = abortAfterMs === undefined ? {} : { signal: aborting.signal };
      const reads = Array.from({ length: 24 }, async (_, index) => {
        const target = Buffer.alloc(4096 + index);
        await client.read(index * 4096, target, options);
        expect(target.equals(pattern(index * 4096, target.length)), "wrong bytes").toBe(true);
      });
      const others = [
        client.write(0, Buffer.alloc(512), { ...options, idempotent: true }),
        client.write(512, Buffer.alloc(512), options),
        client.flush(options),
        collect(client.blockStatus(options)).then((batches) => {
          expect(batches.reduce((sum, { length }) => sum + length, 0)).toBe(SIZE);
        }),
      ];
      const all = Promise.allSettled([...reads, ...others]);
      if (closeAfterMs !== undefined) {
        await new Promise((resolve) => setTimeout(resolve, closeAfterMs));
        await client.close();
      }
      for (const outcome of await all) if (outcome.status === "rejected") ours(outcome.reason);
      await client.close();
    }),
    { numRuns: 60, endOnFailure: true },
  );
});

function ours(error: unknown): NbdError {
  if (error instanceof NbdError) return error;
  throw error;
}
