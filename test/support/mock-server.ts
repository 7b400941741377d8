/**
 * An NBD server that sends whatever a test tells it to, byte by byte. It shares no code with the client
 * except the protocol's constants, so that one can't hide the other's mistakes.
 */

import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  CHUNK_FLAG_DONE,
  EXTENDED_REPLY_MAGIC,
  GREETING_MAGIC,
  HANDSHAKE,
  INFO,
  OPTION,
  OPTION_ERROR,
  OPTION_MAGIC,
  OPTION_REPLY,
  OPTION_REPLY_MAGIC,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
  TRANSMISSION,
} from "../../src/nbd/wire/constants.js";

/** Unsigned big-endian numbers; 64-bit ones may be given as bigint. */
export function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

export function u64(value: number | bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}

export const ALL_HANDSHAKE_FLAGS = HANDSHAKE.FIXED_NEWSTYLE | HANDSHAKE.NO_ZEROES;

export function greeting(flags: number = ALL_HANDSHAKE_FLAGS): Buffer {
  return Buffer.concat([u64(GREETING_MAGIC), u64(OPTION_MAGIC), u16(flags)]);
}

export function optionReply(option: number, type: number, payload: Uint8Array = Buffer.alloc(0)): Buffer {
  return Buffer.concat([u64(OPTION_REPLY_MAGIC), u32(option), u32(type), u32(payload.length), payload]);
}

export function metaContext(id: number, name: string): Buffer {
  return Buffer.concat([u32(id), Buffer.from(name)]);
}

export function infoExport(size: number | bigint, flags: number): Buffer {
  return Buffer.concat([u16(INFO.EXPORT), u64(size), u16(flags)]);
}

export function infoBlockSize(minimum: number, preferred: number, maximum: number): Buffer {
  return Buffer.concat([u16(INFO.BLOCK_SIZE), u32(minimum), u32(preferred), u32(maximum)]);
}

export function simpleReply(cookie: number, error = 0, payload: Uint8Array = Buffer.alloc(0)): Buffer {
  return Buffer.concat([u32(SIMPLE_REPLY_MAGIC), u32(error), u64(cookie), payload]);
}

/** A structured chunk; `done` marks the last one. */
export function chunk(
  cookie: number,
  type: number,
  payload: Uint8Array = Buffer.alloc(0),
  done = true,
): Buffer {
  const flags = u16(done ? CHUNK_FLAG_DONE : 0);
  return Buffer.concat([
    u32(STRUCTURED_REPLY_MAGIC),
    flags,
    u16(type),
    u64(cookie),
    u32(payload.length),
    payload,
  ]);
}

export function extendedChunk(
  cookie: number,
  offset: number,
  type: number,
  payload: Uint8Array = Buffer.alloc(0),
  done = true,
): Buffer {
  const flags = u16(done ? CHUNK_FLAG_DONE : 0);
  const head = [u32(EXTENDED_REPLY_MAGIC), flags, u16(type), u64(cookie), u64(offset), u64(payload.length)];
  return Buffer.concat([...head, payload]);
}

/** Payload of a data chunk. */
export function dataAt(offset: number, data: Uint8Array): Buffer {
  return Buffer.concat([u64(offset), data]);
}

/** Payload of an ERROR chunk. */
export function errorPayload(error: number, message = ""): Buffer {
  const text = Buffer.from(message);
  return Buffer.concat([u32(error), u16(text.length), text]);
}

/** Payload of a BLOCK_STATUS chunk: pairs of length and flags. */
export function statusPayload(contextId: number, ...extents: readonly (readonly [number, number])[]): Buffer {
  return Buffer.concat([u32(contextId), ...extents.flatMap(([length, flags]) => [u32(length), u32(flags)])]);
}

/** Payload of a BLOCK_STATUS_EXT chunk. */
export function wideStatusPayload(
  contextId: number,
  ...extents: readonly (readonly [number | bigint, number | bigint])[]
): Buffer {
  const descriptors = extents.flatMap(([length, flags]) => [u64(length), u64(flags)]);
  return Buffer.concat([u32(contextId), u32(extents.length), ...descriptors]);
}

export interface OptionRequest {
  readonly option: number;
  readonly data: Buffer;
}

export interface TransmissionRequest {
  readonly flags: number;
  readonly command: number;
  readonly cookie: number;
  readonly offset: number;
  readonly length: number;
}

/** The server's end of one connection. Receiving rejects when the client has disconnected. */
export class Peer {
  readonly socket: Socket;
  #queue = Buffer.alloc(0);
  #wake: (() => void) | undefined;
  #gone = false;

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on("data", (bytes: Buffer) => {
      this.#queue = Buffer.concat([this.#queue, bytes]);
      this.#wake?.();
    });
    const gone = () => {
      this.#gone = true;
      this.#wake?.();
    };
    socket.on("error", gone);
    socket.on("close", gone);
    socket.on("end", gone);
  }

  send(...pieces: readonly Uint8Array[]): void {
    this.socket.write(Buffer.concat(pieces));
  }

  /** Sends pieces of `size` bytes, each in its own packet. */
  async dribble(bytes: Uint8Array, size = 1): Promise<void> {
    for (let at = 0; at < bytes.length; at += size) {
      this.socket.write(bytes.subarray(at, at + size));
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  async receive(length: number): Promise<Buffer> {
    while (this.#queue.length < length) {
      if (this.#gone) throw new Error("the client has gone");
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const taken = this.#queue.subarray(0, length);
    this.#queue = this.#queue.subarray(length);
    return taken;
  }

  /** Settles only when the client has disconnected: used to stay silent. */
  async gone(): Promise<void> {
    while (!this.#gone) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  async option(): Promise<OptionRequest> {
    const header = await this.receive(16);
    if (header.readBigUInt64BE(0) !== OPTION_MAGIC) throw new Error("the client sent no option");
    return { option: header.readUInt32BE(8), data: await this.receive(header.readUInt32BE(12)) };
  }

  async request(extended = false): Promise<TransmissionRequest> {
    const header = await this.receive(extended ? 32 : 28);
    return {
      flags: header.readUInt16BE(4),
      command: header.readUInt16BE(6),
      cookie: Number(header.readBigUInt64BE(8)),
      offset: Number(header.readBigUInt64BE(16)),
      length: extended ? Number(header.readBigUInt64BE(24)) : header.readUInt32BE(24),
    };
  }
}

export interface ExportFacts {
  readonly size?: number | bigint;
  readonly flags?: number;
  readonly protocol?: "simple" | "structured" | "extended";
  /** Names of contexts; the n-th one has the ID n + 1. */
  readonly contexts?: readonly string[];
  /** Minimum, preferred, maximum. */
  readonly blockSize?: readonly [number, number, number];
  /** Called for each option that the client sends. */
  readonly onOption?: (option: number, data: Buffer) => void;
}

/** Flags of a read-only export that offers DF. */
export const COMMON_FLAGS = TRANSMISSION.HAS_FLAGS | TRANSMISSION.READ_ONLY | TRANSMISSION.SEND_DF;

/** A correct handshake, from the greeting to the transmission phase. */
export async function handshake(peer: Peer, facts: ExportFacts = {}): Promise<void> {
  peer.send(greeting());
  await peer.receive(4);
  while (true) {
    const { option, data } = await peer.option();
    facts.onOption?.(option, data);
    peer.send(...answer(option, data, facts));
    if (option === OPTION.GO) return;
  }
}

/** The replies of a well-behaved server to one option. */
export function answer(option: number, data: Buffer, facts: ExportFacts): Buffer[] {
  const {
    size = 1024 * 1024,
    flags = COMMON_FLAGS,
    protocol = "structured",
    contexts = [],
    blockSize,
  } = facts;
  const ack = optionReply(option, OPTION_REPLY.ACK);
  const unsupported = optionReply(option, OPTION_ERROR.UNSUP);
  switch (option) {
    case OPTION.EXTENDED_HEADERS:
      return [protocol === "extended" ? ack : unsupported];
    case OPTION.STRUCTURED_REPLY:
      return [protocol === "structured" ? ack : unsupported];
    case OPTION.SET_META_CONTEXT: {
      const granted = contexts.filter((name) => data.includes(name));
      return [
        ...granted.map((name) =>
          optionReply(option, OPTION_REPLY.META_CONTEXT, metaContext(contexts.indexOf(name) + 1, name)),
        ),
        ack,
      ];
    }
    case OPTION.GO:
      return [
        optionReply(option, OPTION_REPLY.INFO, infoExport(size, flags)),
        ...(blockSize ? [optionReply(option, OPTION_REPLY.INFO, infoBlockSize(...blockSize))] : []),
        ack,
      ];
    default:
      return [unsupported];
  }
}

/** What the server does with one connection; `index` counts them from 0. */
export type Script = (peer: Peer, index: number) => Promise<void>;

export class MockServer implements AsyncDisposable {
  readonly uri: string;
  readonly socketPath: string;
  readonly #server: Server;
  readonly #folder: string;
  readonly #sockets = new Set<Socket>();
  #connections = 0;

  private constructor(server: Server, folder: string, socketPath: string) {
    this.#server = server;
    this.#folder = folder;
    this.socketPath = socketPath;
    this.uri = `nbd+unix:///disk?socket=${encodeURIComponent(socketPath)}`;
  }

  /** Connections so far. */
  get connections(): number {
    return this.#connections;
  }

  /**
   * Plays `script` to each client. The connection closes when the script ends; the script ends when the
   * client disconnects.
   */
  static async start(script: Script): Promise<MockServer> {
    const folder = await mkdtemp(join(tmpdir(), "nbd-mock-"));
    const path = join(folder, "socket");
    const server = createServer({ noDelay: true });
    const mock = new MockServer(server, folder, path);
    server.on("connection", (socket) => mock.#play(socket, script));
    await new Promise<void>((resolve) => server.listen(path, resolve));
    return mock;
  }

  #play(socket: Socket, script: Script): void {
    const index = this.#connections;
    this.#connections += 1;
    this.#sockets.add(socket);
    socket.on("close", () => this.#sockets.delete(socket));
    script(new Peer(socket), index).then(
      () => socket.end(),
      () => socket.destroy(),
    );
  }

  /** Closes all connections and stops listening. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
    await rm(this.#folder, { recursive: true, force: true });
  }
}
