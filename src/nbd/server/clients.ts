/**
 * The clients of a server: which may come in, and which has to leave so that another can. A client is idle
 * while it has no request under way, and while it hardly takes any bytes of the replies that wait for it.
 */

import { isIPv6, type Socket } from "node:net";
import { bytesTaken } from "../patience/bytes-taken.js";
import type { ByteChannel } from "./byte-channel.js";
import { ClientFault } from "./errors.js";

interface ClientLimits {
  readonly maxConnections: number;
  readonly maxConnectionsPerPeer: number;
  /** A client that has been idle for this time leaves; milliseconds. */
  readonly idleTimeoutMs: number;
  /** A client that has been idle for this time leaves if its place is needed. */
  readonly spareAfterMs: number;
}

/** Longest time between two looks at the clients; milliseconds. */
const LOOK_EVERY_MS = 1000;
/** Bytes per second: a client that takes fewer of the replies that wait for it is as good as idle. */
export const MIN_RATE = 1024;

/** One connection. */
export class Client {
  readonly socket: Socket;
  /** The host at the other end; undefined if it is this one, where all users have the same address. */
  readonly peer: string | undefined;
  #channel: ByteChannel | undefined;
  #underWay = 0;
  #hasWorked = false;
  #taken = 0;
  #idleMs = 0;

  constructor(socket: Socket) {
    this.socket = socket;
    this.peer = peerOf(socket.remoteAddress);
  }

  /** For how long it has been idle; milliseconds. */
  get idleMs(): number {
    return this.#idleMs;
  }

  /** To be called when it has chosen an export; until then it is idle. */
  opened(channel: ByteChannel): void {
    this.#channel = channel;
    this.#hasWorked = true;
  }

  requestBegun(): void {
    this.#underWay += 1;
  }

  requestAnswered(): void {
    this.#underWay -= 1;
    this.#hasWorked = true;
  }

  /** To be called every `ms`: time is counted, so that no client pays for a suspension of this process. */
  look(ms: number): void {
    const taken = bytesTaken(this.socket);
    const isTaking = (taken - this.#taken) * 1000 >= MIN_RATE * ms;
    this.#taken = taken;
    // While nothing waits to be sent, the export is still being read for it.
    const isServed = this.#underWay > 0 && (isTaking || this.#channel?.hasUnsentBytes === false);
    this.#idleMs = this.#hasWorked || isServed ? 0 : this.#idleMs + ms;
    this.#hasWorked = false;
  }
}

export class Clients {
  readonly #limits: ClientLimits;
  readonly #clients = new Set<Client>();
  readonly #lookEveryMs: number;
  #timer: NodeJS.Timeout | undefined;

  constructor(limits: ClientLimits) {
    this.#limits = limits;
    this.#lookEveryMs = Math.min(LOOK_EVERY_MS, limits.spareAfterMs / 4, limits.idleTimeoutMs / 4);
  }

  /** Admits a client, if need be in the place of one that is idle; undefined if there is no place. */
  admit(socket: Socket): Client | undefined {
    const client = new Client(socket);
    const { maxConnections, maxConnectionsPerPeer } = this.#limits;
    const ofPeer = this.#ofPeer(client.peer);
    if (client.peer !== undefined && ofPeer.length >= maxConnectionsPerPeer) {
      if (!this.#dismissOneOf(ofPeer)) return undefined;
    } else if (this.#clients.size >= maxConnections && !this.#dismissOneOf([...this.#clients])) {
      return undefined;
    }
    this.#clients.add(client);
    this.#timer ??= setInterval(() => this.#look(), this.#lookEveryMs).unref();
    return client;
  }

  left(client: Client): void {
    this.#clients.delete(client);
    if (this.#clients.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  #ofPeer(peer: string | undefined): Client[] {
    return [...this.#clients].filter((client) => client.peer === peer);
  }

  /** Disconnects the one that has been idle longest, of a peer with the most connections. */
  #dismissOneOf(clients: readonly Client[]): boolean {
    const spare = clients.filter(({ idleMs }) => idleMs >= this.#limits.spareAfterMs);
    const rank = (client: Client) => this.#ofPeer(client.peer).length;
    const [chosen] = spare.sort((a, b) => rank(b) - rank(a) || b.idleMs - a.idleMs);
    if (chosen === undefined) return false;
    const seconds = Math.round(chosen.idleMs / 1000);
    this.#dismiss(chosen, "MADE_ROOM", `the client was idle for ${seconds} s, and another needed its place`);
    return true;
  }

  #dismiss(client: Client, code: "MADE_ROOM" | "IDLE", message: string): void {
    this.left(client);
    client.socket.destroy(new ClientFault(code, message));
  }

  #look(): void {
    for (const client of this.#clients) {
      client.look(this.#lookEveryMs);
      const { idleTimeoutMs } = this.#limits;
      if (client.idleMs < idleTimeoutMs) continue;
      this.#dismiss(client, "IDLE", `the client was idle for ${idleTimeoutMs / 1000} s`);
    }
  }
}

/** The host of an address. Whoever has one IPv6 address has all that begin with the same 64 bits. */
function peerOf(address: string | undefined): string | undefined {
  if (address === undefined) return undefined;
  const plain = address.replace(/^::ffff:(?=\d+\.)/i, "").replace(/%.*$/, "");
  if (plain === "::1" || plain.startsWith("127.")) return undefined;
  if (!isIPv6(plain)) return plain;
  const [head = "", tail] = plain.split("::");
  const groups = head.split(":").filter((group) => group !== "");
  const after = tail === undefined ? 0 : tail.split(":").filter((group) => group !== "").length;
  while (groups.length + after < 8) groups.push("0");
  return groups.slice(0, 4).join(":");
}
