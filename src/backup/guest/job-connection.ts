/** The way from this host to the exports of a job: straight, or through ssh. */
import { mkdtemp, rm } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { NbdAddress } from "../../nbd/index.js";
import { PreconditionError } from "../base/errors.js";
import { isLocalOnly } from "../host/listen-address.js";
import { addressInUse } from "../host/private-socket.js";
import { Ssh } from "../host/ssh.js";
import { openForward, type SshForward } from "../host/ssh-forward.js";
import { type Hypervisor, hostOf } from "../libvirt/hypervisor.js";
import { addressOf } from "../libvirt/job-address.js";
import type { BackupServer } from "../libvirt/job-xml.js";

/** Whoever opened it closes it when no client is connected any more, and before the job is ended. */
export interface JobConnection extends AsyncDisposable {
  addressOf(exportName: string): NbdAddress;
  /** Where a TCP server will be connected to straight. */
  readonly straightTo: { readonly host: string; readonly port: number } | undefined;
  /**
   * Reads from the exports, under a signal that also comes when the way is lost.
   * @throws what `work` throws, or the reason for it that lies in the way: `E_SSH_LOST`, `E_SSH_FORWARD`
   */
  walk<T>(signal: AbortSignal | undefined, work: (signal: AbortSignal | undefined) => Promise<T>): Promise<T>;
}

export interface JobConnectionOptions {
  readonly hypervisor: Hypervisor;
  /** The user's word on where a TCP server is reached. */
  readonly hostOverride: string | undefined;
  /** Path for a socket on this host, should one be needed. */
  readonly socket: string;
  /** As `openForward` has it. */
  readonly note?: string | undefined;
  readonly signal: AbortSignal | undefined;
}

const WILDCARDS = ["0.0.0.0", "::"];
const PROBE_MS = 5000;

/**
 * Where QEMU listens on an address that others can connect to, straight; else with ssh through that.
 *
 * @param server as QEMU has it
 * @throws {PreconditionError} `E_REMOTE`: from here there is no way; `E_SSH`, `E_NO_SSH`, `E_SSH_PATH`
 */
export async function connectJob(
  server: BackupServer,
  options: JobConnectionOptions,
): Promise<JobConnection> {
  const { hypervisor, hostOverride, socket, note, signal } = options;
  const remote = hostOf(hypervisor);
  if (remote === undefined) return directConnection(server);
  if (server.transport === "tcp" && (hostOverride !== undefined || !isLocalOnly(server.host))) {
    // A wildcard is where it listens, not where it is.
    const host = WILDCARDS.includes(server.host) ? remote : server.host;
    return directConnection({ ...server, host }, { host: hostOverride ?? host, port: server.port });
  }
  if (hypervisor.kind !== "ssh") throw unreachable(server, remote);
  const to =
    server.transport === "unix"
      ? ({ kind: "unix", path: server.socket } as const)
      : ({ kind: "tcp", host: server.host, port: server.port } as const);
  return forwardedConnection(
    server,
    socket,
    await openForward(new Ssh(hypervisor.target, signal), { to, socket, note }),
  );
}

/** The same with a place of its own for the socket. */
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

/** The server is where it says that it is. */
export function directConnection(
  server: BackupServer,
  straightTo?: JobConnection["straightTo"],
): JobConnection {
  return {
    addressOf: (exportName) => addressOf(server, exportName),
    straightTo,
    walk: (signal, work) => work(signal),
    [Symbol.asyncDispose]: async () => undefined,
  };
}

function forwardedConnection(server: BackupServer, socket: string, forward: SshForward): JobConnection {
  // The name on its certificate is that of the other end.
  const hostname = server.transport === "tcp" ? { hostname: server.host } : {};
  return {
    addressOf: (exportName) => ({
      transport: { kind: "unix", path: socket },
      exportName,
      ...(server.tls ? { tls: hostname } : {}),
    }),
    straightTo: undefined,
    walk: async (signal, work) => {
      try {
        return await work(AbortSignal.any(signal ? [signal, forward.lost] : [forward.lost]));
      } catch (error) {
        signal?.throwIfAborted();
        throw await forward.explain(error);
      }
    },
    [Symbol.asyncDispose]: () => forward.close(),
  };
}

function unreachable(server: BackupServer, host: string): PreconditionError {
  const where = server.transport === "unix" ? `the Unix socket ${server.socket}` : server.host;
  return new PreconditionError(
    "E_REMOTE",
    `the job on ${host} is served by ${where}, which can be reached from that host only: connect to libvirt by qemu+ssh://, through which the way goes on by itself, or begin the job on an address that can be reached from here`,
    { details: { host } },
  );
}

/**
 * Whether a server that is yet to come could be reached: a port where nobody listens answers with a refusal, and a
 * firewall in most cases with nothing.
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
  const message = `QEMU's port ${port} on ${host} can't be reached from here (${code}), so no job was begun: see to firewall and name, name another address with --server tcp:ADDRESS:PORT or --host-override, or leave --server out to go through ssh`;
  throw new PreconditionError("E_UNREACHABLE", message, { details: { host, port } });
}
