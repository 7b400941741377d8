import { createServer, connect as dial, type Server, type Socket } from "node:net";
import { join } from "node:path";
import {
  encodePacket,
  type Packet,
  PacketSplitter,
  PROGRAM,
  STATUS,
  TYPE,
} from "../../src/backup/libvirt/rpc/packets.js";
import { readDomain } from "../../src/backup/libvirt/rpc/wire-objects.js";
import { XdrReader, XdrWriter } from "../../src/backup/libvirt/rpc/xdr.js";
import { reply as answerTo, refusal } from "./scripted-libvirt.js";

const DAEMON = "/run/libvirt/libvirt-sock";
const LIST_ALL_DOMAINS = 273;
const DEFINE_XML = 350;
const DELETE_CHECKPOINT = 417;
const GET_FSINFO = 349;
/** The calls that are logged, and that trouble can be made for. */
const LOGGED: Readonly<Record<number, string>> = {
  164: "abort",
  335: "freeze",
  336: "thaw",
  350: "define",
  421: "begin",
};
type Logged = "abort" | "freeze" | "thaw" | "define" | "begin";

interface Trouble {
  /** Refused, without asking the daemon; with the error `said`. */
  readonly fail?: Logged;
  readonly said?: string;
  /** Not answered before {@link LibvirtInFront.release}, and refused then, without asking the daemon. */
  readonly hang?: Logged;
  /** Done, but not answered before {@link LibvirtInFront.release}. */
  readonly late?: Logged;
  /** The domains that run: the system's libvirt may have others. */
  readonly running?: readonly string[];
  /** A domain of this name is not defined. */
  readonly refuseDefinition?: string;
  /**
   * Asked at each deletion of a checkpoint; where it returns true, the deletion is never done, nor answered.
   */
  readonly swallowDeletion?: () => boolean;
  /** Asked at each call; it is refused by what this returns, without asking the daemon. */
  readonly refuse?: (call: Packet) => { readonly number: number; readonly said: string } | undefined;
  /** Asked at each answer of the daemon; the bytes that it returns go to the client in its place. */
  readonly spoil?: (answer: Packet) => Buffer | undefined;
}

/**
 * A libvirt in front of the real one. It answers for the guest agent, which the lab's guest lacks, in the
 * words of qemu-ga 7.2, and logs the calls above; everything else goes to the daemon and back.
 */
export class LibvirtInFront implements Disposable {
  /** The logged calls, oldest first. */
  readonly asked: string[] = [];
  /** Whether the guest is frozen, by whomever. */
  isFrozen = false;
  readonly #folder: string;
  readonly #servers: Server[] = [];
  readonly #sockets = new Set<Socket>();
  #isAway = false;
  /** The connection over which a job was cancelled last. */
  #aborting: Socket | undefined;
  /** Gives an answer that is held back. */
  readonly #held: (() => void)[] = [];

  /** @param folder where its sockets are */
  constructor(folder: string) {
    this.#folder = folder;
  }

  /** The environment for a program that is to use it. */
  env(trouble: Trouble = {}): Record<string, string> {
    const path = join(this.#folder, `libvirt-${this.#servers.length}.sock`);
    const server = createServer((client) => this.#serve(client, trouble));
    server.listen(path);
    this.#servers.push(server);
    return { LIBVIRT_DEFAULT_URI: `qemu+unix:///system?socket=${path}` };
  }

  /** Is away, as a daemon that is restarted, from now on until what it returns is called. */
  leave(): () => void {
    this.#isAway = true;
    for (const socket of this.#sockets) socket.destroy();
    this.#sockets.clear();
    return () => {
      this.#isAway = false;
    };
  }

  /** Gives the answers that it has held back until now. */
  release(): void {
    for (const give of this.#held.splice(0)) give();
  }

  [Symbol.dispose](): void {
    for (const server of this.#servers) server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  #serve(client: Socket, trouble: Trouble): void {
    if (this.#isAway) {
      client.destroy();
      return;
    }
    const daemon = dial(DAEMON);
    const late = new Set<number>();
    for (const [from, to] of [
      [client, daemon],
      [daemon, client],
    ] as const) {
      this.#sockets.add(from);
      from.on("error", () => undefined);
      from.on("close", () => to.destroy());
    }
    const calls = new PacketSplitter();
    client.on("data", (bytes) => {
      for (const packet of calls.push(bytes)) {
        if (this.#answer(packet, client, trouble)) continue;
        const logged = LOGGED[packet.procedure];
        if (logged !== undefined && logged === trouble.late) late.add(packet.serial);
        daemon.write(encodePacket(packet));
      }
    });
    const answers = new PacketSplitter();
    daemon.on("data", (bytes) => {
      for (const packet of answers.push(bytes)) {
        const spoilt = packet.type === TYPE.reply ? trouble.spoil?.(packet) : undefined;
        if (spoilt) {
          client.write(spoilt);
          continue;
        }
        const pass = (): boolean => client.write(encodePacket(packet));
        if (packet.type === TYPE.reply && late.delete(packet.serial)) {
          this.#held.push(pass);
          this.asked.push(`${trouble.late} done`);
        } else pass();
      }
    });
  }

  /** @returns whether the daemon need not be asked */
  #answer(packet: Packet, client: Socket, trouble: Trouble): boolean {
    if (packet.program !== PROGRAM.remote || packet.type !== TYPE.call) return false;
    const { fail, said = "internal error: refused", hang, running, refuseDefinition } = trouble;
    const reply = (payload: XdrWriter): boolean => client.write(answerTo(packet, payload));
    const refuse = (why: string): boolean => client.write(refusalTo(packet, why));
    const logged = LOGGED[packet.procedure];
    const refused = trouble.refuse?.(packet);
    if (refused) {
      client.write(answerTo(packet, refusal(refused.number, refused.said), STATUS.error));
    } else if (packet.procedure === GET_FSINFO) {
      if (this.isFrozen) refuse(frozenFor("guest-get-fsinfo"));
      else reply(FILE_SYSTEMS);
    } else if (packet.procedure === LIST_ALL_DOMAINS && running !== undefined) {
      const list = new XdrWriter().int(running.length);
      for (const [index, name] of running.entries())
        list
          .string(name)
          .fixed(Buffer.alloc(16))
          .int(index + 1);
      reply(list.int(running.length));
    } else if (packet.procedure === DEFINE_XML && refuseDefinition !== undefined) {
      if (!packet.payload.includes(`<name>${refuseDefinition}</name>`)) return false;
      refuse(said);
    } else if (packet.procedure === DELETE_CHECKPOINT) return trouble.swallowDeletion?.() ?? false;
    else if (logged === undefined) return false;
    else {
      // A job may be cancelled again while libvirt is too busy to end it: by the same client, and nothing between.
      const isAgain = logged === "abort" && this.asked.at(-1) === "abort" && this.#aborting === client;
      if (logged === "abort") this.#aborting = client;
      if (!isAgain) {
        this.asked.push([logged, ...mountpointsOf(packet)].join(" "));
      }
      if (logged === fail) refuse(said);
      else if (logged === hang) this.#held.push(() => refuse(said));
      else if (logged === "freeze" && this.isFrozen) refuse(frozenFor("guest-fsfreeze-freeze"));
      else if (logged === "freeze" || logged === "thaw") {
        this.isFrozen = logged === "freeze";
        reply(new XdrWriter().int(2));
      } else return false;
    }
    return true;
  }
}

const FILE_SYSTEMS = new XdrWriter().int(2);
for (const mountpoint of ["/", "/srv"]) FILE_SYSTEMS.string(mountpoint).string("vda1").string("ext4").int(0);
FILE_SYSTEMS.int(2);

function frozenFor(command: string): string {
  return `internal error: unable to execute QEMU agent command '${command}': Command ${command} has been disabled: the agent is in frozen state`;
}

function refusalTo(call: Packet, said: string): Buffer {
  // VIR_ERR_OPERATION_INVALID, or VIR_ERR_INTERNAL_ERROR.
  const number = said.startsWith("Requested operation is not valid") ? 55 : 1;
  return answerTo(call, refusal(number, said), STATUS.error);
}

function mountpointsOf({ procedure, payload }: Packet): string[] {
  if (LOGGED[procedure] !== "freeze") return [];
  const args = new XdrReader(payload);
  readDomain(args);
  return args.list(() => args.string());
}
