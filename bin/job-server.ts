/** The options for how QEMU serves a backup job that `backup` starts. */
import { type Command, InvalidArgumentError } from "commander";
import { UsageError } from "../src/backup/base/errors.js";
import { isLocalOnly, parseListenAddress, type TcpAddress } from "../src/backup/host/listen-address.js";
import type { TcpServer } from "../src/backup/libvirt/documents/begin-xml.js";
import { grouped } from "./option-groups.js";
import { type NetworkOptions, withNetwork } from "./options.js";

export interface JobServerOptions extends NetworkOptions {
  /** Undefined, or without an address: a Unix socket. */
  readonly server?: { readonly tcp: TcpAddress | undefined };
  readonly tls?: true;
  readonly allowRemote?: true;
}

export function withJobServer(command: Command): Command {
  grouped(command, "TCP and TLS", () =>
    command
      .option(
        "--server <kind>",
        "how QEMU serves: unix (default), or tcp[:[ADDRESS:]PORT], on 127.0.0.1:10809 by default",
        server,
      )
      .option("--tls", "with --server tcp: by TLS only, for which the hypervisor needs certificates")
      .option("--allow-remote", "with --server tcp: without TLS also where other machines can connect"),
  );
  return withNetwork(command);
}

/**
 * The requested TCP server; undefined for a Unix socket.
 * @throws {UsageError} if options contradict each other, or would expose the guest's disks to everyone
 */
export function tcpServerOf(options: JobServerOptions): TcpServer | undefined {
  const { tlsCa, tlsCert, tlsKey, insecure, tlsPskFile, server } = options;
  if (tlsPskFile !== undefined) {
    throw new UsageError("E_SERVER", "libvirt's jobs know certificates only, not --tls-psk-file");
  }
  const tls = [options.tls, tlsCa, tlsCert, tlsKey, insecure].some((flag) => flag !== undefined);
  if (server?.tcp === undefined) {
    const what = tls ? "TLS" : options.hostOverride && "--host-override";
    if (what === undefined) return undefined;
    throw new UsageError("E_SERVER", `${what} is for jobs that are served by TCP: add --server tcp`);
  }
  const { host, port } = server.tcp;
  if (!tls && !options.allowRemote && !isLocalOnly(host)) {
    const message = `other machines can reach ${host} and read the guest's disks: give --tls, or --allow-remote to serve them to everybody unencrypted`;
    throw new UsageError("E_REMOTE", message, { details: { host } });
  }
  return { transport: "tcp", host, port, tls };
}

/** Who else can read the guest's disks while the job runs; undefined if nobody can. */
export function readersOf(server: TcpServer | undefined): string | undefined {
  if (server === undefined || server.tls) return undefined;
  const { host } = server;
  return isLocalOnly(host)
    ? `every user of the machine that the domain runs on can connect to ${host} and read its disks while the job runs: without --server, QEMU serves on a socket that lets in only root`
    : `anyone who reaches ${host} can read the domain's disks while the job runs, unencrypted: --tls lets in only clients with a certificate`;
}

function server(text: string): JobServerOptions["server"] {
  if (text === "unix") return { tcp: undefined };
  if (text === "tcp") return { tcp: parseListenAddress("127.0.0.1") };
  if (!text.startsWith("tcp:"))
    throw new InvalidArgumentError("give unix, tcp, tcp:PORT or tcp:ADDRESS:PORT");
  const address = listenAddress(text.slice("tcp:".length));
  if (address.port === 0) throw new InvalidArgumentError("give a port from 1 to 65535");
  return { tcp: address };
}

function listenAddress(text: string): TcpAddress {
  try {
    return parseListenAddress(text);
  } catch (error) {
    if (error instanceof UsageError) throw new InvalidArgumentError(error.message);
    throw error;
  }
}
