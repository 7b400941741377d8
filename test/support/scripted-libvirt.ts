import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  encodePacket,
  type Packet,
  PacketSplitter,
  PROGRAM,
  STATUS,
  TYPE,
} from "../../src/backup/libvirt/rpc/packets.js";
import { XdrReader, XdrWriter } from "../../src/backup/libvirt/rpc/xdr.js";

export const UUID = "8c2d5f0e-3f0b-4d5c-9a55-4a1c0f0f6a10";

/** What a script says to a call. */
export type Answer =
  | XdrWriter
  | { readonly refuse: number; readonly message: string }
  /** Bytes as they are, instead of a packet. */
  | Buffer
  | "silence"
  | "hang up";

export interface Client {
  readonly socket: Socket;
  /** Sends an answer to a call that was made before. */
  readonly answer: (call: Packet, answer: Answer) => void;
  /** Sends a message: an event, or a ping. */
  readonly tell: (procedure: number, payload: XdrWriter, program?: number) => void;
}

/** By the number of the procedure. */
export type Script = Readonly<
  Record<number, (args: XdrReader, call: Packet, client: Client) => Answer | Promise<Answer>>
>;

/** What every libvirt says at the beginning: no authentication, opened, keepalive supported. */
const GREETING: Script = {
  66: () => new XdrWriter().int(1).int(0),
  1: () => new XdrWriter(),
  60: () => new XdrWriter().int(1),
  // One domain, whatever it is called.
  23: (args) => domainOf(args.string()),
  24: () => domainOf("lab"),
};

/** A libvirt that says what a test scripts; anything else it refuses, as one that has no such procedure. */
export class ScriptedLibvirt implements AsyncDisposable {
  /** For `connect`. */
  readonly uri: string;
  readonly socket: string;
  /** The numbers of the procedures that were called after the greeting. */
  readonly calls: number[] = [];
  /** Messages of the client: pings and pongs. */
  readonly told: Packet[] = [];
  readonly clients: Client[] = [];
  readonly #folder: string;
  #script: Script;
  #server: Server | undefined;

  private constructor(folder: string, script: Script) {
    this.#folder = folder;
    this.#script = { ...GREETING, ...script };
    this.socket = join(folder, "libvirt.sock");
    this.uri = `qemu+unix:///system?socket=${this.socket}`;
  }

  static async start(script: Script = {}): Promise<ScriptedLibvirt> {
    const libvirt = new ScriptedLibvirt(await mkdtemp(join(tmpdir(), "nbdpull-scripted-")), script);
    await libvirt.up();
    return libvirt;
  }

  /** Says other things from now on. */
  say(script: Script): void {
    this.#script = { ...GREETING, ...script };
  }

  /** Listens; with a script, says other things from now on. */
  async up(script?: Script): Promise<void> {
    if (script) this.say(script);
    const server = createServer((socket) => this.#serve(socket));
    this.#server = server;
    await new Promise<void>((resolve) => server.listen(this.socket, resolve));
  }

  /** Ends, with all connections, as a daemon does that is restarted. */
  async down(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    for (const { socket } of this.clients.splice(0)) socket.destroy();
    if (server) await new Promise((resolve) => server.close(resolve));
    await rm(this.socket, { force: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.down();
    await rm(this.#folder, { recursive: true });
  }

  #serve(socket: Socket): void {
    const answer = (call: Packet, what: Answer): void => {
      if (what === "silence") return;
      if (what === "hang up") socket.destroy();
      else if (Buffer.isBuffer(what)) socket.write(what);
      else if (what instanceof XdrWriter) socket.write(reply(call, what));
      else socket.write(reply(call, refusal(what.refuse, what.message), STATUS.error));
    };
    const tell = (procedure: number, payload: XdrWriter, program: number = PROGRAM.remote): void => {
      const message = { program, procedure, type: TYPE.message, serial: 0, status: STATUS.ok };
      socket.write(encodePacket({ ...message, payload: payload.finish() }));
    };
    const client = { socket, answer, tell };
    this.clients.push(client);
    const splitter = new PacketSplitter();
    socket.on("error", () => undefined);
    socket.on("data", async (bytes) => {
      for (const call of splitter.push(bytes)) {
        if (call.type !== TYPE.call) {
          this.told.push(call);
          continue;
        }
        if (!Object.hasOwn(GREETING, call.procedure)) this.calls.push(call.procedure);
        const say = this.#script[call.procedure];
        const what = say
          ? await say(new XdrReader(call.payload), call, client)
          : { refuse: 3, message: "not supported" };
        answer(call, what);
      }
    });
  }
}

export function domainOf(name: string): XdrWriter {
  return new XdrWriter()
    .string(name)
    .fixed(Buffer.from(UUID.replaceAll("-", ""), "hex"))
    .int(1);
}

/** The packet of a reply to a call. */
export function reply(call: Packet, payload: XdrWriter, status: number = STATUS.ok): Buffer {
  return encodePacket({ ...call, type: TYPE.reply, status, payload: payload.finish() });
}

/** `remote_error`. */
export function refusal(number: number, message: string): XdrWriter {
  const out = new XdrWriter().int(number).int(10).optionalString(message).int(2).int(0);
  for (let text = 1; text <= 3; text += 1) out.optionalString(undefined);
  return out.int(0).int(0).int(0);
}
