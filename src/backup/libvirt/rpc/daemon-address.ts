import { UsageError } from "../../base/errors.js";
import type { SshTarget } from "../../host/ssh.js";
import { parametersOf, parseHypervisor } from "../hypervisor.js";

/** How to reach a daemon. */
export type DaemonWay =
  /** The first socket that somebody listens on. */
  | { readonly kind: "unix"; readonly sockets: readonly string[] }
  /** A program on the other host connects to the socket there. */
  | {
      readonly kind: "ssh";
      readonly target: SshTarget;
      /** For nc, where there is no virt-ssh-helper. */
      readonly sockets: readonly string[];
      readonly netcat: string;
      readonly proxy: "auto" | "native" | "netcat";
    }
  | {
      readonly kind: "tls";
      readonly host: string;
      readonly port: number;
      /** Folder with cacert.pem, clientcert.pem and clientkey.pem; undefined: libvirt's own places. */
      readonly pki: string | undefined;
      readonly verify: boolean;
    }
  | { readonly kind: "tcp"; readonly host: string; readonly port: number };

export interface DaemonAddress {
  readonly way: DaemonWay;
  /** What the daemon is asked to open: the URI as it is on its host. */
  readonly uri: string;
}

interface Places {
  /** Of the user's own daemons: `$XDG_RUNTIME_DIR`. */
  readonly runtimeFolder: string;
}

const PORT = { tls: 16514, tcp: 16509 };
/** The daemon of QEMU alone, and the one of all hypervisors, which older hosts have. */
const DAEMONS = ["virtqemud-sock", "libvirt-sock"];

/**
 * Reads a connection URI: qemu:///system, qemu:///session, qemu+unix:///system?socket=PATH,
 * qemu+ssh://USER@HOST/system, qemu+tls://HOST/system, qemu+tcp://HOST/system. Pure.
 *
 * @throws {UsageError} `E_LIBVIRT_URI`
 */
export function parseDaemonAddress(uri: string, { runtimeFolder }: Places): DaemonAddress {
  if (!URL.canParse(uri)) {
    throw unusable(uri, "it is no URI, and no alias in libvirt.conf");
  }
  const url = new URL(uri);
  const [driver = "", named] = url.protocol.slice(0, -1).split("+");
  const parameters = parametersOf(url.search);
  const isSession = url.pathname === "/session";
  const there = parameters.get("name") ?? `${driver}://${url.pathname}`;
  if (!URL.canParse(there)) throw unusable(uri, `its name ${there} is no URI`);
  const socket = parameters.get("socket");
  const folder = isSession ? `${runtimeFolder}/libvirt` : "/run/libvirt";
  const sockets = socket === undefined ? DAEMONS.map((name) => `${folder}/${name}`) : [socket];
  const host = url.hostname.replace(/^\[(.*)\]$/, "$1");
  const port = url.port === "" ? undefined : Number(url.port);
  // As in libvirt, a host without a transport means TLS.
  const transport = named ?? (host === "" ? "unix" : "tls");
  switch (transport) {
    case "unix":
      return { uri: there, way: { kind: "unix", sockets } };
    case "ssh":
    case "libssh":
    case "libssh2":
      return { uri: there, way: sshWay(uri, sockets, parameters) };
    case "tls":
      return {
        uri: there,
        way: {
          kind: "tls",
          host,
          port: port ?? PORT.tls,
          pki: parameters.get("pkipath"),
          verify: (parameters.get("no_verify") ?? "0") === "0",
        },
      };
    case "tcp":
      return { uri: there, way: { kind: "tcp", host, port: port ?? PORT.tcp } };
    default:
      throw unusable(uri, `it names the transport ${transport}`);
  }
}

function sshWay(uri: string, sockets: readonly string[], parameters: ReadonlyMap<string, string>): DaemonWay {
  const hypervisor = parseHypervisor(uri);
  const proxy = parameters.get("proxy") ?? "auto";
  if (hypervisor.kind !== "ssh" || !isProxy(proxy)) throw unusable(uri, `it names the proxy ${proxy}`);
  const netcat = parameters.get("netcat") ?? "nc";
  return { kind: "ssh", target: hypervisor.target, sockets, netcat, proxy };
}

function isProxy(text: string): text is "auto" | "native" | "netcat" {
  return ["auto", "native", "netcat"].includes(text);
}

function unusable(uri: string, why: string): UsageError {
  return new UsageError(
    "E_LIBVIRT_URI",
    `the connection URI ${uri} can't be used: ${why}. Ways that work: qemu:///system, qemu:///session, qemu+ssh://USER@HOST/system, qemu+tls://HOST/system`,
    { details: { uri } },
  );
}
