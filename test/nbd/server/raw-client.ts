/** A manual client: it sends what it is told, right or wrong, and shares no code with the server's codec. */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import type { NbdServer } from "../../../src/nbd/server/index.js";

export const u16 = (value: number): Buffer => Buffer.from([value >> 8, value & 0xff]);
export const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};
export const u64 = (value: number | bigint): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
};
/** A string with a length prefix, as in option data. */
export const counted = (text: string): Buffer =>
  Buffer.concat([u32(Buffer.byteLength(text)), Buffer.from(text)]);

export const optionFrame = (option: number, ...data: Buffer[]): Buffer => {
  const payload = Buffer.concat(data);
  return Buffer.concat([Buffer.from("IHAVEOPT"), u32(option), u32(payload.length), payload]);
};

/** Data of INFO and GO. */
export const infoQuery = (name: string, ...infos: number[]): Buffer =>
  Buffer.concat([counted(name), u16(infos.length), ...infos.map(u16)]);

/** Data of LIST_META_CONTEXT and SET_META_CONTEXT. */
export const metaQuery = (name: string, ...queries: string[]): Buffer =>
  Buffer.concat([counted(name), u32(queries.length), ...queries.map(counted)]);

export interface RawRequest {
  readonly type: number;
  readonly flags?: number;
  readonly cookie?: number | bigint;
  readonly offset?: number | bigint;
  readonly length?: number | bigint;
}

export const requestFrame = ({ type, flags = 0, cookie = 7, offset = 0, length = 0 }: RawRequest): Buffer =>
  Buffer.concat([u32(0x25609513), u16(flags), u16(type), u64(cookie), u64(offset), u32(Number(length))]);

export const extendedRequestFrame = ({
  type,
  flags = 0,
  cookie = 7,
  offset = 0,
  length = 0,
}: RawRequest): Buffer =>
  Buffer.concat([u32(0x21e41c71), u16(flags), u16(type), u64(cookie), u64(offset), u64(length)]);

export const DISC_FRAME = requestFrame({ type: 2 });

export interface OptionReply {
  readonly option: number;
  readonly type: number;
  readonly data: Buffer;
}

export interface Chunk {
  readonly flags: number;
  readonly type: number;
  readonly cookie: bigint;
  /** Only in extended mode. */
  readonly offset?: bigint;
  readonly payload: Buffer;
}

export class RawClient implements AsyncDisposable {
  readonly socket: Socket;
  #received = Buffer.alloc(0);
  #wake = (): void => {};

  private constructor(socket: Socket) {
    this.socket = socket;
    // Resets are expected; a pending read reports them.
    socket.on("error", () => {});
    for (const event of ["readable", "end", "close"]) socket.on(event, () => this.#wake());
  }

  static async connect(server: NbdServer): Promise<RawClient> {
    const uri = new URL(server.uri(""));
    const path = uri.searchParams.get("socket");
    const socket = path === null ? connect(Number(uri.port), uri.hostname) : connect(path);
    await once(socket, "connect");
    return new RawClient(socket);
  }

  /** A connection after the greeting, with the client's flags sent. */
  static async greeted(server: NbdServer, clientFlags = 3): Promise<RawClient> {
    const client = await RawClient.connect(server);
    await client.read(18);
    client.send(u32(clientFlags));
    return client;
  }

  send(...frames: readonly Uint8Array[]): void {
    this.socket.write(Buffer.concat(frames));
  }

  /** The next `length` bytes; rejects if the server hangs up before. */
  async read(length: number): Promise<Buffer> {
    while (this.#received.length < length) {
      const more: Buffer | null = this.socket.read();
      if (more !== null) this.#received = Buffer.concat([this.#received, more]);
      else if (this.socket.readableEnded || this.socket.destroyed) throw new Error("the server hung up");
      else {
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
      }
    }
    const bytes = this.#received.subarray(0, length);
    this.#received = this.#received.subarray(length);
    return bytes;
  }

  /** Everything that the server still sends before it hangs up. */
  async rest(): Promise<Buffer> {
    const bytes: Buffer[] = [this.#received];
    try {
      for await (const chunk of this.socket) bytes.push(chunk);
    } catch {
      // A reset ends the stream too.
    }
    return Buffer.concat(bytes);
  }

  async optionReply(): Promise<OptionReply> {
    const header = await this.read(20);
    return {
      option: header.readUInt32BE(8),
      type: header.readUInt32BE(12),
      data: await this.read(header.readUInt32BE(16)),
    };
  }

  /** Sends an option, and returns its replies up to the last one. */
  async option(option: number, ...data: Buffer[]): Promise<OptionReply[]> {
    this.send(optionFrame(option, ...data));
    const replies: OptionReply[] = [];
    for (;;) {
      const reply = await this.optionReply();
      replies.push(reply);
      if (reply.type === 1 || reply.type >= 0x80000000) return replies;
    }
  }

  /** The type of an option's last reply: 1, or 2^31 plus an error. */
  async outcome(option: number, ...data: Buffer[]): Promise<number | undefined> {
    return (await this.option(option, ...data)).at(-1)?.type;
  }

  async simpleReply(dataBytes: number): Promise<{ error: number; cookie: bigint; data: Buffer }> {
    const header = await this.read(16);
    if (header.readUInt32BE(0) !== 0x67446698) throw new Error("not a simple reply");
    const error = header.readUInt32BE(4);
    return { error, cookie: header.readBigUInt64BE(8), data: await this.read(error === 0 ? dataBytes : 0) };
  }

  async chunk(): Promise<Chunk> {
    const header = await this.read(20);
    const common = {
      flags: header.readUInt16BE(4),
      type: header.readUInt16BE(6),
      cookie: header.readBigUInt64BE(8),
    };
    switch (header.readUInt32BE(0)) {
      case 0x668e33ef:
        return { ...common, payload: await this.read(header.readUInt32BE(16)) };
      case 0x6e8a278c: {
        const tail = Buffer.concat([header.subarray(16), await this.read(12)]);
        const payload = await this.read(Number(tail.readBigUInt64BE(8)));
        return { ...common, offset: tail.readBigUInt64BE(0), payload };
      }
      default:
        throw new Error("not a chunk");
    }
  }

  /** The chunks of a reply up to the last one. */
  async chunks(): Promise<Chunk[]> {
    const chunks: Chunk[] = [];
    for (;;) {
      const chunk = await this.chunk();
      chunks.push(chunk);
      if ((chunk.flags & 1) !== 0) return chunks;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.socket.closed) return;
    this.socket.destroy();
    await once(this.socket, "close");
  }
}
