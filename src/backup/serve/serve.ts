/**
 * The serve room offers the disks of a restore point as read-only NBD exports, so that any NBD client can
 * read files from them or boot a guest from an overlay on them.
 *
 * Read this file first (the server and its events), then point-view.ts (opens all disks of a point) and
 * chain-view.ts (reads one disk through its chain and compares digests). extent-index.ts and cluster-cache.ts
 * are helpers of chain-view.ts. This room itself never changes an image or a manifest. While it serves, a
 * reader mark in the repository keeps prunes away. But opening a domain for reading may first finish the last
 * phase of a prune that died, which does change images and manifests (`Repository.beginReading`).
 */

import {
  ALLOCATION,
  ClientFault,
  formatNbdUri,
  type ListenAddress,
  NbdServer,
  type NbdServerEvent,
  parseNbdUri,
  ServedError,
  type ServedExport,
  type ServerTls,
} from "../../nbd/index.js";
import { UsageError } from "../base/errors.js";
import { closeAll } from "../base/in-parallel.js";
import type { Assurance } from "../chain/assurance.js";
import { ALLOCATION_CONTEXT } from "../export/export-extents.js";
import { addressInUse, bindPrivately, clearSocketPath } from "../host/private-socket.js";
import type { Manifest } from "../repository/manifest.js";
import type { ChainView } from "./chain-view.js";
import { type DiskReads, PointView, type PointViewOptions } from "./point-view.js";

export interface ServeOptions extends PointViewOptions {
  /**
   * The absolute path of a Unix socket, which only this user can connect to, or TCP; port 0 is any free port.
   */
  readonly address: ListenAddress;
  /** The host in the URIs; default: the address that the server listens on. */
  readonly host?: string | undefined;
  /** If set, every client must use TLS. */
  readonly tls?: ServerTls | undefined;
  /**
   * A client that asks for nothing for this time is disconnected; default: never, because a guest that runs
   * on an overlay of the disk may read nothing for days, and would have I/O errors then.
   */
  readonly idleTimeoutMs?: number | undefined;
  /** Connections at once, default 64; and from one other host, default 32. */
  readonly maxClients?: number | undefined;
  readonly maxClientsPerHost?: number | undefined;
  /** @internal Called for each read that a client asks for, and that is not all zeroes. */
  readonly onRead?: ((disk: string, offset: number, length: number) => void) | undefined;
  /** Called just after each event. */
  readonly onEvent?: ((event: ServeEvent) => void) | undefined;
}

export type ServeEvent =
  /**
   * A client got EIO; `error` has the point, the disk and the guest offset in its message and its details.
   */
  | { readonly type: "read-failed"; readonly error: unknown }
  /** A client was turned away, or broke the protocol or the TLS handshake. */
  | { readonly type: "client-failed"; readonly error: Error }
  /** The system could not accept a connection; the server keeps listening. */
  | { readonly type: "accept-failed"; readonly error: Error };

/** A disk that is served. */
export interface ServedDisk extends Assurance {
  readonly disk: string;
  readonly uri: string;
  readonly virtualSize: number;
  /** The points that the bytes come from, newest first. */
  readonly chain: readonly string[];
}

/**
 * Serves the disks of a restore point by NBD, read-only, each as an export with the disk's name; a single
 * disk is also the default export. Block status tells holes and zeroes from data. A read of damaged data
 * fails with EIO; all other data is served.
 *
 * @throws as {@link PointView.open}
 * @throws {PreconditionError} another program listens there
 * @throws {UsageError} the path can't be a socket, the address is not this machine's, or the certificate is
 *   unusable
 */
export async function servePoint(options: ServeOptions): Promise<PointServer> {
  const { address, tls, idleTimeoutMs = Number.POSITIVE_INFINITY } = options;
  const { maxClients, maxClientsPerHost } = options;
  if ("path" in address) await clearSocketPath(address.path);
  const view = await PointView.open(options);
  const clients = new Clients();
  try {
    const listen = (): Promise<NbdServer> =>
      NbdServer.listen({
        exports: exportsOf(view, options.onRead),
        address,
        ...(tls === undefined ? {} : { tls }),
        idleTimeoutMs,
        ...(maxClients === undefined ? {} : { maxConnections: maxClients }),
        ...(maxClientsPerHost === undefined ? {} : { maxConnectionsPerPeer: maxClientsPerHost }),
        onEvent: (event) => {
          clients.note(event);
          const told = asServeEvent(event);
          if (told) options.onEvent?.(told);
        },
      });
    const server = await ("path" in address ? bindPrivately(listen) : listen());
    return new PointServer(view, server, options.host, clients.left);
  } catch (error) {
    await view.close();
    throw whyNotListening(error, address);
  }
}

/** A point that is being served, until it is closed. */
export class PointServer implements AsyncDisposable {
  readonly point: Manifest;
  readonly disks: readonly ServedDisk[];
  /** Settles when clients have opened an export and all of them have left. */
  readonly clientsLeft: Promise<void>;
  readonly #view: PointView;
  readonly #server: NbdServer;

  /** @internal use {@link servePoint} */
  constructor(view: PointView, server: NbdServer, host: string | undefined, clientsLeft: Promise<void>) {
    this.point = view.point;
    this.clientsLeft = clientsLeft;
    this.#view = view;
    this.#server = server;
    this.disks = view.disks.map(({ disk, chain, assurance }) => ({
      disk: disk.name,
      uri: uriOf(server, disk.name, host),
      virtualSize: disk.virtualSize,
      chain,
      ...assurance,
    }));
  }

  /** The stretches of a disk that are zero, in guest order, in bytes. */
  *zeroes(disk: string): Generator<{ readonly offset: number; readonly length: number }> {
    const view = this.#view.disks.find((each) => each.disk.name === disk);
    let offset = 0;
    for (const { length, state } of view?.extents(0, view.size) ?? []) {
      if (state === "zero") yield { offset, length };
      offset += length;
    }
  }

  /** @internal As {@link PointView.fetchAhead} */
  async fetchAhead(reads: readonly DiskReads[], mostBytes: number): Promise<void> {
    await this.#view.fetchAhead(reads, mostBytes);
  }

  /** @throws as {@link PointView.assertUnpruned} */
  async assertUnpruned(): Promise<void> {
    await this.#view.assertUnpruned();
  }

  /** Hangs up on all clients, removes the socket and closes the images. */
  async close(): Promise<void> {
    await closeAll(this.#server, this.#view);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

function exportsOf({ point, disks }: PointView, onRead: ServeOptions["onRead"]): Map<string, ServedExport> {
  const exports = new Map(disks.map((view) => [view.disk.name, exportOf(point, view, onRead)]));
  const [only, ...others] = exports.values();
  if (only && others.length === 0) exports.set("", only);
  return exports;
}

function exportOf(point: Manifest, view: ChainView, onRead: ServeOptions["onRead"]): ServedExport {
  const { name } = view.disk;
  return {
    size: view.size,
    description: `${name} of ${point.domain.name} at ${point.createdAt}, point ${point.id}`,
    contexts: new Map([
      [
        ALLOCATION_CONTEXT,
        function* (offset, length) {
          for (const { length: bytes, state } of view.extents(offset, length)) {
            yield { length: bytes, flags: state === "zero" ? ALLOCATION.HOLE | ALLOCATION.ZERO : 0 };
          }
        },
      ],
    ]),
    read: async (offset, length, signal) => {
      if (onRead && hasData(view, offset, length)) onRead(name, offset, length);
      try {
        return await view.read(offset, length, signal);
      } catch (cause) {
        // The full error contains paths: it goes to `onEvent` and not to the client.
        const message = `disk ${name} of point ${point.id} cannot be read in ${length} bytes at ${offset}`;
        throw new ServedError("EIO", message, { cause });
      }
    },
  };
}

function hasData(view: ChainView, offset: number, length: number): boolean {
  for (const { state } of view.extents(offset, length)) if (state === "data") return true;
  return false;
}

function asServeEvent(event: NbdServerEvent): ServeEvent | undefined {
  switch (event.type) {
    case "request-failed": {
      const { error } = event;
      return { type: "read-failed", error: error instanceof ServedError ? error.cause : error };
    }
    case "accept-failed":
      return event;
    case "turned-away": {
      const whose = event.peer === undefined ? "a client" : `a client at ${event.peer}`;
      const error = new Error(`too many connections, and none of them is idle: ${whose} was turned away`);
      return { type: "client-failed", error };
    }
    case "disconnected": {
      const { error } = event;
      const isFault = error instanceof ClientFault && !["DISCONNECTED", "SERVER_CLOSED"].includes(error.code);
      return isFault ? { type: "client-failed", error } : undefined;
    }
    case "connected":
    case "export-opened":
      return undefined;
    default:
      return event satisfies never;
  }
}

/** Counts the clients that have opened an export. */
class Clients {
  readonly #connections = new Set<number>();
  #leave: () => void = () => undefined;
  readonly left = new Promise<void>((resolve) => {
    this.#leave = resolve;
  });

  note(event: NbdServerEvent): void {
    if (event.type === "export-opened") this.#connections.add(event.connection);
    else if (event.type === "disconnected" && this.#connections.delete(event.connection)) {
      if (this.#connections.size === 0) this.#leave();
    }
  }
}

/** The URI of an export, with `host` in it: a TLS certificate is issued for a host name. */
function uriOf(server: NbdServer, exportName: string, host: string | undefined): string {
  const uri = parseNbdUri(server.uri(exportName));
  if (host === undefined || uri.transport.kind === "unix") return formatNbdUri(uri);
  return formatNbdUri({ ...uri, transport: { ...uri.transport, host } });
}

function whyNotListening(error: unknown, address: ListenAddress): unknown {
  if (!(error instanceof Error)) return error;
  const { code = "" } = error as NodeJS.ErrnoException;
  const where = "path" in address ? address.path : `${address.host}:${address.port}`;
  switch (code) {
    case "EADDRINUSE":
      return addressInUse(where, error);
    case "EADDRNOTAVAIL": {
      const message = `${where} is no address of this machine: name one that it has`;
      return new UsageError("E_LISTEN", message, { cause: error });
    }
    default: {
      if (!code.startsWith("ERR_OSSL")) return error;
      const message = `the certificate, its key or the CA can't be used: ${error.message}`;
      return new UsageError("E_TLS_FILE", message, { cause: error });
    }
  }
}
