/** What can happen to a server's bytes on the line. */

import fc from "fast-check";
import type { Peer } from "./mock-server.js";

/** A fault at a position of the server's stream. */
export type Fault =
  | { readonly kind: "replace"; readonly at: number; readonly bytes: Uint8Array }
  | { readonly kind: "insert"; readonly at: number; readonly bytes: Uint8Array }
  | { readonly kind: "delete"; readonly at: number; readonly count: number }
  | { readonly kind: "cut"; readonly at: number };

/** A fault somewhere in `length` bytes. */
export function anyFault(length: number): fc.Arbitrary<Fault> {
  const at = fc.nat(length - 1);
  const bytes = fc.oneof(
    fc.uint8Array({ minLength: 1, maxLength: 8 }),
    fc.constantFrom(Buffer.alloc(4, 0xff), Buffer.alloc(8, 0xff), Buffer.alloc(4), Buffer.from([0x80])),
  );
  return fc.oneof(
    { weight: 6, arbitrary: fc.record({ kind: fc.constant("replace" as const), at, bytes }) },
    { weight: 2, arbitrary: fc.record({ kind: fc.constant("insert" as const), at, bytes }) },
    {
      weight: 2,
      arbitrary: fc.record({
        kind: fc.constant("delete" as const),
        at,
        count: fc.integer({ min: 1, max: 30 }),
      }),
    },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant("cut" as const), at }) },
  );
}

/** Some faults anywhere in a conversation, or only after its handshake. */
export function anyFaults(conversation: {
  readonly length: number;
  readonly handshake: number;
}): fc.Arbitrary<Fault[]> {
  const { length, handshake } = conversation;
  const later = anyFault(length - handshake).map((fault) => ({ ...fault, at: fault.at + handshake }));
  return fc.oneof(
    fc.array(anyFault(length), { minLength: 1, maxLength: 3 }),
    fc.array(later, { minLength: 1, maxLength: 2 }),
  );
}

/** Sends bytes to a peer, with faults. The payload of reads is neither changed nor counted. */
export class FaultyLine {
  #position = 0;
  readonly #peer: Peer;
  readonly #faults: readonly Fault[];

  constructor(peer: Peer, faults: readonly Fault[]) {
    this.#peer = peer;
    this.#faults = faults;
  }

  get position(): number {
    return this.#position;
  }

  send(bytes: Uint8Array, payload: Uint8Array = new Uint8Array(0)): void {
    let faulty = Buffer.from(bytes);
    const start = this.#position;
    this.#position += bytes.length;
    for (const fault of this.#faults) {
      const at = fault.at - start;
      if (at < 0 || at >= faulty.length) continue;
      if (fault.kind === "cut") {
        this.#peer.send(faulty.subarray(0, at));
        this.#peer.socket.end();
        return;
      }
      const cut = fault.kind === "delete" ? fault.count : fault.kind === "replace" ? fault.bytes.length : 0;
      // A replacement must not make the bytes longer, so it ends with them.
      const put =
        fault.kind === "delete"
          ? Buffer.alloc(0)
          : fault.bytes.subarray(0, cut === 0 ? undefined : faulty.length - at);
      faulty = Buffer.concat([faulty.subarray(0, at), put, faulty.subarray(at + cut)]);
    }
    this.#peer.send(faulty, payload);
  }
}
