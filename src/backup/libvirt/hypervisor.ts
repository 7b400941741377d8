/** What a connection URI says: where libvirt runs, and how its daemon is reached. */

import { UsageError } from "../base/errors.js";
import type { SshTarget } from "../host/ssh.js";
import type { DaemonAddress, DaemonWay } from "./rpc/daemon-address.js";

/**
 * Where libvirt runs, according to its connection URI: qemu:///system, qemu+ssh://root@host/system,
 * qemu+tls://host/system.
 */
export type Hypervisor =
  | { readonly kind: "local" }
  /** Reached by ssh, which also gives access to a shell and files there. */
  | { readonly kind: "ssh"; readonly target: SshTarget }
  /** Reached by a protocol that carries only libvirt's calls. */
  | { readonly kind: "network"; readonly host: string };

interface Connection {
  readonly hypervisor: Hypervisor;
  readonly daemon: DaemonAddress;
}

interface Places {
  /** Of the user's own daemons: `$XDG_RUNTIME_DIR`. */
  readonly runtimeFolder: string;
}

/** The parts of a URI that its transports read. */
interface Parts {
  readonly uri: string;
  readonly transport: string;
  /** Without brackets; empty: none is named. */
  readonly host: string;
  readonly port: number | undefined;
  /** Decoded. */
  readonly user: string | undefined;
  readonly parameters: ReadonlyMap<string, string>;
}

const PORT = { tls: 16514, tcp: 16509 };
/** The daemon of QEMU alone, and the one of all hypervisors, which older hosts have. */
const DAEMONS = ["virtqemud-sock", "libvirt-sock"];

/**
 * Characters that a shell gives a meaning. ssh_config may hand host and user to one (%h and %r in
 * ProxyCommand and `Match exec`), and OpenSSH itself refuses them only since 9.6.
 */
// biome-ignore lint/suspicious/noControlCharactersInRegex: those are meant
const NEVER_IN_A_LOGIN = /^-|\\$|[\s\u0000-\u001f\u007f'"`$;&<>|(){}]/;

/**
 * Reads a connection URI: qemu:///system, qemu:///session, qemu+unix:///system?socket=PATH,
 * qemu+ssh://USER@HOST/system, qemu+tls://HOST/system, qemu+tcp://HOST/system. Pure.
 *
 * @throws {UsageError} `E_LIBVIRT_URI`: it can't be used; or its host or user is one that ssh, or a shell
 *   that ssh runs, could take for something else
 */
export function parseConnectionUri(uri: string, { runtimeFolder }: Places): Connection {
  if (!URL.canParse(uri)) throw unusable(uri, "it is no URI, and no alias in libvirt.conf");
  const url = new URL(uri);
  const [driver = "", named] = url.protocol.slice(0, -1).split("+");
  const host = url.hostname.replace(/^\[(.*)\]$/, "$1");
  const parameters = parametersOf(url.search);
  const parts: Parts = {
    // As in libvirt, a host without a transport means TLS.
    ...{ uri, transport: named ?? (host === "" ? "unix" : "tls"), host, parameters },
    port: url.port === "" ? undefined : Number(url.port),
    user: url.username === "" ? undefined : decode(url.username),
  };
  const there = parameters.get("name") ?? `${driver}://${url.pathname}`;
  if (!URL.canParse(there)) throw unusable(uri, `its name ${there} is no URI`);
  const socket = parameters.get("socket");
  const folder = url.pathname === "/session" ? `${runtimeFolder}/libvirt` : "/run/libvirt";
  const sockets = socket === undefined ? DAEMONS.map((name) => `${folder}/${name}`) : [socket];
  const way = wayOf(parts, sockets);
  return { hypervisor: hypervisorOf(way, host), daemon: { uri: there, way } };
}

function wayOf(parts: Parts, sockets: readonly string[]): DaemonWay {
  const { uri, transport, host, port, parameters } = parts;
  switch (transport) {
    case "unix":
      // The socket would be of this host, and what its libvirt serves would be looked for on the other.
      if (host !== "") throw unusable(uri, `a Unix socket is on this host, and it names the host ${host}`);
      return { kind: "unix", sockets };
    case "ssh":
    case "libssh":
    case "libssh2": {
      const netcat = parameters.get("netcat") ?? "nc";
      return { kind: "ssh", target: sshTarget(parts), sockets, netcat, proxy: proxyOf(parts) };
    }
    case "tls": {
      const pki = parameters.get("pkipath");
      const verify = !isOn(parameters.get("no_verify"));
      return { kind: "tls", host: host || "localhost", port: port ?? PORT.tls, pki, verify };
    }
    case "tcp":
      return { kind: "tcp", host: host || "localhost", port: port ?? PORT.tcp };
    default:
      throw unusable(uri, `it names the transport ${transport}`);
  }
}

function hypervisorOf(way: DaemonWay, host: string): Hypervisor {
  if (way.kind === "ssh") return { kind: "ssh", target: way.target };
  return host === "" ? { kind: "local" } : { kind: "network", host };
}

/** The host's name in the URI; undefined for this host. */
export function hostOf(hypervisor: Hypervisor): string | undefined {
  if (hypervisor.kind === "local") return undefined;
  return hypervisor.kind === "ssh" ? hypervisor.target.host : hypervisor.host;
}

function proxyOf({ uri, parameters }: Parts): "auto" | "native" | "netcat" {
  const proxy = parameters.get("proxy") ?? "auto";
  if (proxy === "auto" || proxy === "native" || proxy === "netcat") return proxy;
  throw unusable(uri, `it names the proxy ${proxy}`);
}

function sshTarget({ uri, transport, host, port, user, parameters }: Parts): SshTarget {
  for (const [what, text] of [
    ["host", decode(host)],
    ["user", user],
  ]) {
    if (text !== undefined && NEVER_IN_A_LOGIN.test(text)) throw unusableLogin(uri, `${what} "${text}"`);
  }
  return {
    ...{ host: host || "localhost", port, user },
    keyFile: parameters.get("keyfile"),
    program: transport === "ssh" ? parameters.get("command") : undefined,
    settings: settingsOf(transport, parameters),
  };
}

/**
 * libvirt's `ssh` knows only `no_verify`, its ssh libraries also the other two. OpenSSH has a setting for
 * each.
 */
function settingsOf(transport: string, parameters: ReadonlyMap<string, string>): string[] {
  const settings: string[] = [];
  if (isOn(parameters.get("no_verify"))) settings.push("StrictHostKeyChecking=no");
  if (transport === "ssh") return settings;
  const knownHosts = parameters.get("known_hosts");
  if (knownHosts !== undefined) settings.push(`UserKnownHostsFile=${knownHosts}`);
  const verify = parameters.get("known_hosts_verify");
  if (verify === "auto") settings.push("StrictHostKeyChecking=accept-new");
  if (verify === "ignore") settings.push("StrictHostKeyChecking=no");
  return settings;
}

function isOn(flag: string | undefined): boolean {
  return flag !== undefined && flag !== "0";
}

/** Unlike in a web form, a plus sign here is not a blank. */
function parametersOf(search: string): ReadonlyMap<string, string> {
  const pairs = search.replace(/^\?/, "").split(/[&;]/);
  return new Map(
    pairs.map((pair): [string, string] => {
      const [name = "", ...value] = pair.split("=");
      return [decode(name), decode(value.join("="))];
    }),
  );
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function unusableLogin(uri: string, what: string): UsageError {
  const message = `the connection URI ${uri} names the ${what}, which ssh or a shell could take for an option or a command: a name that begins with a letter, without blanks and quotes, works`;
  return new UsageError("E_LIBVIRT_URI", message, { details: { uri } });
}

function unusable(uri: string, why: string): UsageError {
  return new UsageError(
    "E_LIBVIRT_URI",
    `the connection URI ${uri} can't be used: ${why}. Ways that work: qemu:///system, qemu:///session, qemu+ssh://USER@HOST/system, qemu+tls://HOST/system`,
    { details: { uri } },
  );
}
