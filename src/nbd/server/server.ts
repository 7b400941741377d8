import { once } from "node:events";
import { createServer, type Server, type Socket } from "node:net";
import { countedTimeout } from "../patience/counted-timeout.js";
import { ByteChannel } from "./byte-channel.js";
import { type Client, Clients } from "./clients.js";
import { ClientFault } from "./errors.js";
import type { ExportSource } from "./export.js";
import { negotiate } from "./handshake.js";
import { ReplyRoom } from "./reply-room.js";
import type { Session } from "./session.js";
import { checkTls, type ServerTls, upgradeToTls } from "./tls.js";
import { serveRequests } from "./transmission.js";
import type { ReplyMode } from "./transmission-frames.js";

/** Where to listen: a Unix socket, or TCP, where port 0 means any free port. */
export type ListenAddress = { readonly path: string } | { readonly host: string; readonly port: number };

/** `connection` numbers the connections of a server from 1. */
export type NbdServerEvent =
  | { readonly type: "connected"; readonly connection: number }
  /** There were too many connections, none of them idle: the client was disconnected. */
  | { readonly type: "turned-away"; readonly peer: string | undefined }
  /**
   * The system could not provide a connection, for example for lack of file descriptors; listening continues.
   */
  | { readonly type: "accept-failed"; readonly error: Error }
  | {
      readonly type: "export-opened";
      readonly connection: number;
      readonly exportName: string;
      readonly mode: ReplyMode;
      readonly contexts: readonly string[];
    }
  /** An export failed; the client got an error. */
  | {
      readonly type: "request-failed";
      readonly connection: number;
      readonly exportName: string;
      readonly error: unknown;
    }
  /** Without `error`, the client disconnected properly. */
  | { readonly type: "disconnected"; readonly connection: number; readonly error?: unknown };

export interface NbdServerOptions {
  /** Looked up again for each connection. */
  readonly exports: ExportSource;
  readonly address: ListenAddress;
  /** If present, TLS is required. */
  readonly tls?: ServerTls;
  /**
   * Default 64. For one more, the connection that has been idle longest is closed, if it is idle for
   * `spareAfterMs`; otherwise the client is turned away.
   */
  readonly maxConnections?: number;
  /**
   * The same for each remote host, where 2^64 neighbouring IPv6 addresses are one; default 32. Connections
   * from this host, and over a Unix socket, have no such limit.
   */
  readonly maxConnectionsPerPeer?: number;
  /** A connection that is idle for less time (milliseconds) is not closed for another; default 5000. */
  readonly spareAfterMs?: number;
  /** A connection that is idle for this time (milliseconds) is closed; default 86,400,000, which is a day. */
  readonly idleTimeoutMs?: number;
  /** Time from the connection to the choice of an export, in milliseconds. Default 10 000. */
  readonly handshakeTimeoutMs?: number;
  /** Bytes of replies in memory at a time, for all connections together. Default 256 MiB. */
  readonly maxReplyBytes?: number;
  /**
   * A client that takes reply bytes more slowly than 1 KiB/s while others wait for room is disconnected when
   * it has fallen this time (milliseconds) behind. Default 60 000.
   */
  readonly stallTimeoutMs?: number;
  /**
   * Called right after each event, in order. An exception from it is an uncaught exception of the process.
   */
  readonly onEvent?: (event: NbdServerEvent) => void;
}

const KEEP_ALIVE_MS = 30_000;

/**
 * A small, strict, read-only NBD server: fixed newstyle; simple, structured and extended replies; meta
 * contexts; TLS.
 *
 *     await using server = await NbdServer.listen({
 *       exports: new Map([["disk", disk.freeze()]]),
 *       address: { path: "/run/user/1000/nbd.sock" },
 *     });
 *     console.log(server.uri("disk")); // nbd+unix:///disk?socket=/run/user/1000/nbd.sock
 */
export class NbdServer implements AsyncDisposable {
  readonly #server: Server;
  readonly #options: NbdServerOptions;
  readonly #room: ReplyRoom;
  readonly #clients: Clients;
  /** Open connections, each with the promise of its end. */
  readonly #connections = new Map<Socket, Promise<void>>();
  #connectionCount = 0;

  private constructor(server: Server, options: NbdServerOptions) {
    this.#server = server;
    this.#options = options;
    const { maxReplyBytes = 256 * 1024 * 1024, stallTimeoutMs = 60_000 } = options;
    this.#room = new ReplyRoom({ maxBytes: maxReplyBytes, stallTimeoutMs });
    const { maxConnections = 64, maxConnectionsPerPeer = 32 } = options;
    const { spareAfterMs = 5000, idleTimeoutMs = 24 * 3_600_000 } = options;
    this.#clients = new Clients({ maxConnections, maxConnectionsPerPeer, spareAfterMs, idleTimeoutMs });
    server.on("connection", (socket) => this.#accept(socket));
  }

  /** @throws the error of the system (EADDRINUSE, EACCES, ENOENT) or of OpenSSL, with `code` */
  static async listen(options: NbdServerOptions): Promise<NbdServer> {
    if (options.tls !== undefined) checkTls(options.tls);
    // Half-open, so that replies still in flight reach a client that has closed its own side after DISC.
    const server = createServer({
      allowHalfOpen: true,
      noDelay: true,
      // Hosts that vanish without a goodbye must not keep their places.
      keepAlive: true,
      keepAliveInitialDelay: KEEP_ALIVE_MS,
    });
    const listening = new NbdServer(server, options);
    server.listen(options.address);
    await once(server, "listening");
    server.on("error", (error) => listening.#emit({ type: "accept-failed", error }));
    return listening;
  }

  /**
   * The URI of an export while the server listens. If it listens on every interface, the host is `localhost`.
   * @throws {Error} the server is closed
   */
  uri(exportName: string): string {
    const scheme = this.#options.tls === undefined ? "nbd" : "nbds";
    const path = encodeURIComponent(exportName);
    const address = this.#server.address();
    if (address === null) throw new Error("a server that is closed has no address");
    if (typeof address === "string") {
      return `${scheme}+unix:///${path}?socket=${encodeURIComponent(address).replaceAll("%2F", "/")}`;
    }
    const host = ["0.0.0.0", "::"].includes(address.address) ? "localhost" : address.address;
    return `${scheme}://${host.includes(":") ? `[${host}]` : host}:${address.port}/${path}`;
  }

  /**
   * Stops listening and disconnects every client. Settles when no read of an export is in progress, so the
   * owner may then close what it served.
   */
  async close(): Promise<void> {
    const closed = new Promise((resolve) => {
      this.#server.close(resolve);
    });
    for (const socket of this.#connections.keys()) {
      socket.destroy(new ClientFault("SERVER_CLOSED", "the server was closed"));
    }
    await Promise.all([closed, ...this.#connections.values()]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #accept(socket: Socket): void {
    const client = this.#clients.admit(socket);
    if (client === undefined) {
      const { remoteAddress: peer } = socket;
      socket.destroy();
      this.#emit({ type: "turned-away", peer });
      return;
    }
    this.#connectionCount += 1;
    const over = this.#serve(client, this.#connectionCount).finally(() => {
      this.#connections.delete(socket);
      this.#clients.left(client);
    });
    this.#connections.set(socket, over);
  }

  async #serve(client: Client, connection: number): Promise<void> {
    const { socket } = client;
    this.#emit({ type: "connected", connection });
    const channel = new ByteChannel(socket);
    try {
      const session = await this.#negotiate(socket, channel);
      if (session !== undefined) {
        client.opened(session.channel);
        const { exportName, mode, contexts } = session;
        this.#emit({
          type: "export-opened",
          connection,
          exportName,
          mode,
          contexts: contexts.map(({ name }) => name),
        });
        await serveRequests(session, client, this.#room, (error) => {
          this.#emit({ type: "request-failed", connection, exportName, error });
        });
      }
      this.#emit({ type: "disconnected", connection });
    } catch (error) {
      // The reason given for hanging up is more precise than the error that the reading side saw.
      this.#emit({ type: "disconnected", connection, error: channel.failure ?? error });
    } finally {
      socket.destroy();
    }
  }

  /** Deferred, because an error from the listener is the caller's and must not keep a connection open. */
  #emit(event: NbdServerEvent): void {
    const { onEvent } = this.#options;
    if (onEvent !== undefined) queueMicrotask(() => onEvent(event));
  }

  async #negotiate(socket: Socket, channel: ByteChannel): Promise<Session | undefined> {
    const { exports, tls, handshakeTimeoutMs = 10_000 } = this.#options;
    const endTimeout = countedTimeout(handshakeTimeoutMs, () => {
      const seconds = handshakeTimeoutMs / 1000;
      socket.destroy(new ClientFault("HANDSHAKE_TIMEOUT", `no export was chosen within ${seconds} s`));
    });
    try {
      if (tls === undefined) return await negotiate(channel, { exports });
      return await negotiate(channel, {
        exports,
        upgradeToTls: async () => {
          channel.release();
          return new ByteChannel(socket, await upgradeToTls(socket, tls));
        },
      });
    } finally {
      endTimeout();
    }
  }
}
