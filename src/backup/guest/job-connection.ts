/** The connection from this host to the exports of a job: direct, or forwarded by ssh. */
import { mkdtemp, rm } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { anySignal, type NbdAddress, type ReconnectOptions } from "../../nbd/index.js";
import { BackupError, hasCode, messageOf, PreconditionError } from "../base/errors.js";
import { LastingForward } from "../host/lasting-forward.js";
import { isLocalOnly } from "../host/listen-address.js";
import { addressInUse } from "../host/private-socket.js";
import { Ssh } from "../host/ssh.js";
import type { BackupServer } from "../libvirt/documents/job-xml.js";
import { type Hypervisor, hostOf } from "../libvirt/hypervisor.js";
import { addressOf } from "../libvirt/job/job-address.js";

/** `JobClients` disposes of it after the job has ended and the last client has disconnected. */
export interface JobConnection extends AsyncDisposable {
  addressOf(exportName: string): NbdAddress;
  /** Host and port of a TCP server that is reached without ssh. */
  readonly straightTo: { readonly host: string; readonly port: number } | undefined;
  /**
   * How clients get a lost connection back, if that is wanted: `wanted`, after the ssh forward was opened
   * again if need be.
   */
  reconnect(wanted: ReconnectOptions | undefined): ReconnectOptions | undefined;
  /**
   * Runs `work` with a signal that also fires when the ssh forward is lost, unless clients reconnect.
   * @throws what `work` throws, or the failure of the forward that caused it: `E_SSH_LOST`, `E_SSH_FORWARD`
   */
  walk<T>(signal: AbortSignal | undefined, work: (signal: AbortSignal | undefined) => Promise<T>): Promise<T>;
}

interface JobConnectionOptions {
  readonly hypervisor: Hypervisor;
  /** The host under which a TCP server is reached, if the user gave one. */
  readonly hostOverride: string | undefined;
  /** Path for a socket on this host, used if ssh forwards the connection. */
  readonly socket: string;
  /** Whether clients reconnect after a loss. */
  readonly reconnects: boolean;
  /** Passed to `openForward`. */
  readonly note?: string | undefined;
  readonly signal: AbortSignal | undefined;
}

const WILDCARDS = ["0.0.0.0", "::"];
const PROBE_MS = 5000;

/**
 * Connects directly if QEMU listens on an address that other hosts can reach; otherwise forwards through ssh.
 *
 * @param server the job's server, as seen on QEMU's host
 * @throws {PreconditionError} `E_REMOTE`: it can't be reached from here; `E_SSH`, `E_NO_SSH`, `E_SSH_PATH`
 */
export async function connectJob(
  server: BackupServer,
  options: JobConnectionOptions,
): Promise<JobConnection> {
  const { hypervisor, hostOverride, socket, reconnects, note, signal } = options;
  const remote = hostOf(hypervisor);
  if (remote === undefined) return directConnection(server);
  if (server.transport === "tcp" && (hostOverride !== undefined || !isLocalOnly(server.host))) {
    // QEMU listens on a wildcard address, but nobody can connect to one.
    const host = WILDCARDS.includes(server.host) ? remote : server.host;
    return directConnection({ ...server, host }, { host: hostOverride ?? host, port: server.port });
  }
  if (hypervisor.kind !== "ssh") throw unreachable(server, remote);
  const to =
    server.transport === "unix"
      ? ({ kind: "unix", path: server.socket } as const)
      : ({ kind: "tcp", host: server.host, port: server.port } as const);
  const forward = await LastingForward.open(new Ssh(hypervisor.target, signal), { to, socket, note });
  return forwardedConnection(server, { socket, reconnects }, forward);
}

/** Like `connectJob`, but creates a temporary folder for the socket and removes it at the end. */
export async function connectJobAnywhere(
  server: BackupServer,
  options: Omit<JobConnectionOptions, "socket" | "note">,
): Promise<JobConnection> {
  const folder = await mkdtemp(join(tmpdir(), "nbdpull-way-"));
  const remove = (): Promise<void> => rm(folder, { recursive: true, force: true });
  try {
    const way = await connectJob(server, { ...options, socket: join(folder, "nbd.sock") });
    return {
      ...way,
      [Symbol.asyncDispose]: async () => {
        await way[Symbol.asyncDispose]();
        await remove();
      },
    };
  } catch (error) {
    await remove();
    throw error;
  }
}

/** A connection to the address that the server itself names. */
export function directConnection(
  server: BackupServer,
  straightTo?: JobConnection["straightTo"],
): JobConnection {
  return {
    addressOf: (exportName) => addressOf(server, exportName),
    straightTo,
    reconnect: (wanted) => wanted,
    walk: (signal, work) => work(signal),
    [Symbol.asyncDispose]: async () => undefined,
  };
}

function forwardedConnection(
  server: BackupServer,
  { socket, reconnects }: Pick<JobConnectionOptions, "socket" | "reconnects">,
  forward: LastingForward,
): JobConnection {
  // The certificate names the remote host, not this end of the forward.
  const hostname = server.transport === "tcp" ? { hostname: server.host } : {};
  return {
    addressOf: (exportName) => ({
      transport: { kind: "unix", path: socket },
      exportName,
      ...(server.tls ? { tls: hostname } : {}),
    }),
    straightTo: undefined,
    // ssh makes the socket anew, so it says nothing about the server.
    reconnect: (wanted) =>
      wanted && { ...wanted, sameServer: false, prepare: (signal) => forward.restore(signal) },
    walk: async (signal, work) => {
      const ends = [...(signal ? [signal] : []), ...(reconnects ? [] : [forward.lost])];
      try {
        return await work(anySignal(...ends));
      } catch (error) {
        signal?.throwIfAborted();
        // Attempts to reconnect after the end of a job are refused, too; then its end is the reason.
        const { code } = error as NodeJS.ErrnoException;
        const isOfLine = !reconnects || code?.startsWith("NBD_") === true;
        if (!isOfLine) throw error;
        const why = await forward.explain(error);
        const isAway = reconnects && why instanceof BackupError && hasCode(why, "E_SSH_LOST");
        throw isAway ? why.of(`${why.message}. It did not come back: ${messageOf(error)}`, {}) : why;
      }
    },
    [Symbol.asyncDispose]: () => forward.close(),
  };
}

function unreachable(server: BackupServer, host: string): PreconditionError {
  const where = server.transport === "unix" ? `the Unix socket ${server.socket}` : server.host;
  return new PreconditionError(
    "E_REMOTE",
    `the job on ${host} is served by ${where}, which can be reached from that host only: connect to libvirt by qemu+ssh://, which forwards the job's connection too, or begin the job on an address that can be reached from here`,
    { details: { host } },
  );
}

/**
 * Checks that a server that is not started yet will be reachable. A reachable host refuses the connection,
 * because nothing listens on the port yet; a firewall in most cases drops it without an answer.
 *
 * @throws {PreconditionError} `E_UNREACHABLE`, `E_ADDRESS_IN_USE`
 */
export async function refuseUnreachable(
  { host, port }: { readonly host: string; readonly port: number },
  signal: AbortSignal | undefined,
): Promise<void> {
  const code = await new Promise<string | undefined>((resolve) => {
    const socket = connect({ host, port, ...(signal === undefined ? {} : { signal }) });
    socket.setTimeout(PROBE_MS, () =>
      socket.destroy(Object.assign(new Error("no answer"), { code: "no answer" })),
    );
    socket.once("connect", () => resolve(undefined));
    socket.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    socket.once("close", () => resolve("no answer"));
    socket.once("connect", () => socket.destroy());
  });
  signal?.throwIfAborted();
  if (code === "ECONNREFUSED") return;
  if (code === undefined) throw addressInUse(`${host}:${port}`);
  const message = `QEMU's port ${port} on ${host} can't be reached from here (${code}), so no job was begun: check the firewall and the host name, give another address with --server tcp:ADDRESS:PORT or --host-override, or leave --server out to go through ssh`;
  throw new PreconditionError("E_UNREACHABLE", message, { details: { host, port } });
}

/** The options of clients that get a lost connection back by way of `connection`, if they shall. */
export function patientBy<T extends object>(
  connection: JobConnection,
  { reconnect: wanted, ...connect }: T & { readonly reconnect: ReconnectOptions | undefined },
): Omit<T, "reconnect"> & { readonly reconnect?: ReconnectOptions } {
  const reconnect = connection.reconnect(wanted);
  return reconnect === undefined ? connect : { ...connect, reconnect };
}
