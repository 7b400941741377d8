import { UsageError } from "../base/errors.js";
import type { SshTarget } from "../host/ssh.js";

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
const SSH_TRANSPORTS = ["ssh", "libssh", "libssh2"];

/**
 * Characters that a shell gives a meaning. ssh_config may hand host and user to one (%h and %r in
 * ProxyCommand and `Match exec`), and OpenSSH itself refuses them only since 9.6.
 */
// biome-ignore lint/suspicious/noControlCharactersInRegex: those are meant
const NEVER_IN_A_LOGIN = /^-|\\$|[\s\u0000-\u001f\u007f'"`$;&<>|(){}]/;

/**
 * Parses a connection URI. Pure.
 *
 * @throws {UsageError} `E_LIBVIRT_URI`: a host or user that ssh, or a shell that ssh runs, could take for
 *   something else
 */
export function parseHypervisor(uri: string): Hypervisor {
  if (!URL.canParse(uri)) return { kind: "local" };
  const { protocol, hostname, port, username, search } = new URL(uri);
  const transport = protocol.slice(0, -1).split("+")[1] ?? "";
  const host = hostname.replace(/^\[(.*)\]$/, "$1");
  if (!SSH_TRANSPORTS.includes(transport)) return host === "" ? { kind: "local" } : { kind: "network", host };
  const parameters = parametersOf(search);
  const user = username === "" ? undefined : decode(username);
  for (const [what, text] of [
    ["host", decode(host)],
    ["user", user],
  ]) {
    if (text !== undefined && NEVER_IN_A_LOGIN.test(text)) throw unusableLogin(uri, `${what} "${text}"`);
  }
  return {
    kind: "ssh",
    target: {
      host: host || "localhost",
      port: port === "" ? undefined : Number(port),
      user,
      keyFile: parameters.get("keyfile"),
      program: transport === "ssh" ? parameters.get("command") : undefined,
      settings: settingsOf(transport, parameters),
    },
  };
}

function unusableLogin(uri: string, what: string): UsageError {
  const message = `the connection URI ${uri} names the ${what}, which ssh or a shell could take for an option or a command: a name that begins with a letter, without blanks and quotes, works`;
  return new UsageError("E_LIBVIRT_URI", message, { details: { uri } });
}

/** The host's name in the URI; undefined for this host. */
export function hostOf(hypervisor: Hypervisor): string | undefined {
  if (hypervisor.kind === "local") return undefined;
  return hypervisor.kind === "ssh" ? hypervisor.target.host : hypervisor.host;
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
export function parametersOf(search: string): ReadonlyMap<string, string> {
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
