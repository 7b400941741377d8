import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { ClientHalf } from "../../bench/conversation.js";
import { CountingRelay } from "../../bench/relay.js";

function option(number: number, data: Buffer): Buffer {
  const header = Buffer.alloc(16);
  header.write("IHAVEOPT", 0, "latin1");
  header.writeUInt32BE(number, 8);
  header.writeUInt32BE(data.length, 12);
  return Buffer.concat([header, data]);
}

function request(type: number, length: number): Buffer {
  const header = Buffer.alloc(28);
  header.writeUInt32BE(0x25609513, 0);
  header.writeUInt16BE(type, 6);
  header.writeUInt32BE(length, 24);
  return header;
}

function extendedRequest(type: number, length: bigint): Buffer {
  const header = Buffer.alloc(32);
  header.writeUInt32BE(0x21e41c71, 0);
  header.writeUInt16BE(type, 6);
  header.writeBigUInt64BE(length, 24);
  return header;
}

describe("the client's half of a conversation", () => {
  const flags = Buffer.from([0, 0, 0, 3]);
  const said = Buffer.concat([
    flags,
    option(8, Buffer.alloc(0)),
    // Data that looks like a request counts as data.
    option(7, request(0, 512)),
    request(7, 4096),
    request(0, 1024),
    request(1, 28),
    // So does the payload of a write.
    request(0, 512),
    extendedRequest(0, 2n ** 33n),
    request(3, 0),
    request(2, 0),
  ]);
  const counts = { options: 2, blockStatus: 1, reads: 2, readBytes: 1024 + 2 ** 33, others: 3 };

  it("is counted, without the payload of writes", () => {
    const half = new ClientHalf();
    half.push(said);
    expect(half.counts).toEqual(counts);
  });

  it("may come in pieces of any size", () => {
    for (const size of [1, 3, 7, 16, 29]) {
      const half = new ClientHalf();
      for (let at = 0; at < said.length; at += size) half.push(said.subarray(at, at + size));
      expect(half.counts).toEqual(counts);
    }
  });

  it("is refused if it is not NBD", () => {
    expect(() => new ClientHalf().push(Buffer.from("\0\0\0\x03GET / HTTP/1.1"))).toThrow("0x47455420");
  });
});

describe("the counting relay", () => {
  it("counts how often a client had to wait, however many requests it sent at once", async () => {
    const folder = await mkdtemp(join(tmpdir(), "bench-relay-"));
    const upstream = join(folder, "server.sock");
    // Sends a greeting, then answers every byte with a byte.
    const server = createServer((socket) => {
      socket.write("hello");
      socket.on("data", (bytes) => socket.write(Buffer.alloc(bytes.length, 0x2e)));
    }).listen(upstream);
    await once(server, "listening");
    try {
      await using relay = await CountingRelay.listen(join(folder, "relay.sock"), upstream);
      const client = connect(join(folder, "relay.sock"));
      const heard = async (bytes: number): Promise<void> => {
        for (let left = bytes; left > 0; ) {
          const chunk = client.read() as Buffer | null;
          if (chunk === null) await once(client, "readable");
          else left -= chunk.length;
        }
      };
      await heard(5);
      client.write(Buffer.from([0, 0, 0, 3]));
      await heard(4);
      // Three requests, one wait.
      for (const length of [1, 2, 3]) client.write(request(0, length));
      await heard(3 * 28);
      client.write(request(7, 1));
      await heard(28);
      client.end();
      await once(client, "close");
      expect(relay.traffic).toEqual({
        connections: 1,
        options: 0,
        reads: 3,
        readBytes: 6,
        blockStatus: 1,
        others: 0,
        roundTrips: 4,
      });
    } finally {
      server.close();
      await rm(folder, { recursive: true });
    }
  });
});
