import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";
import { PacketSplitter, PROGRAM, TYPE } from "../src/backup/libvirt/rpc/packets.js";

/** Where the system's libvirt listens. */
const DAEMON = "/run/libvirt/libvirt-sock";

/**
 * Stands between a program and the system's libvirt, on a socket of its own, and counts what the program
 * asks: calls, but no answers, events or signs of life. Bytes pass as they come.
 */
export class LibvirtRelay implements AsyncDisposable {
  /** As the URI of the system's own libvirt begins: virtnbdbackup wants a password for all others. */
  readonly uri: string;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #calls = 0;
  #connections = 0;
  #error: unknown;

  private constructor(socket: string) {
    this.uri = `qemu:///system?socket=${socket}`;
    this.#server = createServer((client) => this.#accept(client));
  }

  /** @param socket a path that is free */
  static async listen(socket: string): Promise<LibvirtRelay> {
    const relay = new LibvirtRelay(socket);
    relay.#server.listen(socket);
    await once(relay.#server, "listening");
    return relay;
  }

  /** @throws where a program has said something that isn't libvirt's protocol */
  get asked(): { readonly calls: number; readonly connections: number } {
    if (this.#error !== undefined) throw this.#error;
    return { calls: this.#calls, connections: this.#connections };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
    await once(this.#server, "close");
  }

  #accept(client: Socket): void {
    this.#connections += 1;
    const splitter = new PacketSplitter();
    client.on("data", (bytes) => {
      try {
        const calls = splitter
          .push(bytes)
          .filter(({ program, type }) => program === PROGRAM.remote && type === TYPE.call);
        this.#calls += calls.length;
      } catch (error) {
        this.#error ??= error;
      }
    });
    this.#join(client, connect(DAEMON));
  }

  #join(client: Socket, daemon: Socket): void {
    for (const [one, other] of [
      [client, daemon],
      [daemon, client],
    ] as const) {
      this.#sockets.add(one);
      one.on("data", (bytes) => other.write(bytes));
      one.on("close", () => {
        this.#sockets.delete(one);
        other.destroy();
      });
      // Either side may go without a farewell; what comes of that is the program's to say.
      one.on("error", () => undefined);
    }
  }
}
