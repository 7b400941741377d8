/** NBD URIs, as doc/uri.md of the NBD project defines them. */

import { UriError } from "./errors.js";
import { isHost, isIpv6Address } from "./host.js";
import { DEFAULT_PORT } from "./wire/constants.js";

/** Where a server listens. A unix path that starts with NUL is an abstract one. */
export type Endpoint =
  | { readonly kind: "tcp"; readonly host: string; readonly port: number }
  | { readonly kind: "unix"; readonly path: string };

/** The TLS part of a URI; its presence means that TLS is required. */
export interface TlsAddress {
  /**
   * How the two sides authenticate. Other options must be consistent with it. Default: determined by those
   * options.
   */
  readonly type?: "x509" | "psk";
  /** Folder with ca-cert.pem and, for a client certificate, client-cert.pem and client-key.pem. */
  readonly certificates?: string;
  /** File of `username:hexkey` lines. */
  readonly pskFile?: string;
  /** User whose key is used: the user in the URI. */
  readonly username?: string;
  /** The name that the server's certificate must have, if it isn't the host. */
  readonly hostname?: string;
  /** False only with `tls-verify-peer=0`, which is refused unless an option allows it. */
  readonly verifyPeer?: boolean;
}

export interface NbdAddress {
  readonly transport: Endpoint;
  /** Empty for the server's default export. */
  readonly exportName: string;
  readonly tls?: TlsAddress;
}

const SHAPE = /^([a-z][a-z0-9+.-]*):\/\/([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?$/i;
const SCHEME = /^nbd(s?)(?:\+(unix|vsock))?$/;
const AUTHORITY = /^(?:([^@]*)@)?(\[[^\]]*\]|[^:]*)(?::(\d*))?$/;

/**
 * Parses `nbd://host[:port]/export`, `nbd+unix:///export?socket=path` and, with TLS, `nbds://` and
 * `nbds+unix://`. The export name is the path without its first slash.
 * @throws {UriError} NBD_URI_INVALID, or NBD_URI_UNSUPPORTED for vsock and anonymous TLS
 */
export function parseNbdUri(text: string): NbdAddress {
  const [, scheme = "", authority = "", path = "", query = ""] = SHAPE.exec(text) ?? fail(text, "no URI");
  const [, secure, kind = "tcp"] =
    SCHEME.exec(scheme.toLowerCase()) ??
    fail(text, `the scheme is ${scheme}, not nbd, nbds, nbd+unix or nbds+unix`);
  if (kind === "vsock") {
    throw new UriError(
      "NBD_URI_UNSUPPORTED",
      `${text}: vsock is not supported, because Node.js has no sockets for it`,
    );
  }
  const [, user, host = "", port] = AUTHORITY.exec(authority) ?? fail(text, "host and port are unreadable");
  const parameters = parseQuery(text, query);
  const transport =
    kind === "unix" ? unixEndpoint(text, host, port, parameters) : tcpEndpoint(text, host, port, parameters);
  const exportName = decode(text, path.replace(/^\//, ""));
  if (exportName.includes("\0")) fail(text, "an export's name can't hold a NUL");
  const tls = tlsAddress(text, secure === "s", user, parameters);
  return tls === undefined ? { transport, exportName } : { transport, exportName, tls };
}

/** The URI of an address; {@link parseNbdUri} returns the same address for it. */
export function formatNbdUri(address: NbdAddress): string {
  const { transport, exportName, tls } = address;
  const user = tls?.username === undefined ? "" : `${encode(tls.username)}@`;
  const parameters: string[] = [];
  const add = (name: string, value: string | undefined) => {
    if (value !== undefined) parameters.push(`${name}=${encode(value)}`);
  };
  if (transport.kind === "unix") add("socket", transport.path);
  add("tls-type", tls?.type);
  add("tls-certificates", tls?.certificates);
  add("tls-psk-file", tls?.pskFile);
  add("tls-hostname", tls?.hostname);
  add("tls-verify-peer", tls?.verifyPeer === undefined ? undefined : tls.verifyPeer ? "1" : "0");
  const scheme = `nbd${tls === undefined ? "" : "s"}${transport.kind === "unix" ? "+unix" : ""}`;
  const query = parameters.length > 0 ? `?${parameters.join("&")}` : "";
  return `${scheme}://${user}${formatHost(transport)}/${encode(exportName)}${query}`;
}

function formatHost(transport: Endpoint): string {
  if (transport.kind === "unix") return "";
  const host = transport.host.includes(":")
    ? `[${transport.host.replace("%", "%25")}]`
    : encode(transport.host);
  return transport.port === DEFAULT_PORT ? host : `${host}:${transport.port}`;
}

function unixEndpoint(
  text: string,
  host: string,
  port: string | undefined,
  parameters: ReadonlyMap<string, string>,
): Endpoint {
  if (host !== "" || port !== undefined) fail(text, "a unix socket has no host: write three slashes");
  const path = parameters.get("socket") ?? "";
  if (path === "") fail(text, "the parameter socket=PATH is missing");
  if (path.lastIndexOf("\0") > 0) fail(text, "a NUL can only start a socket's path");
  return { kind: "unix", path };
}

function tcpEndpoint(
  text: string,
  host: string,
  port: string | undefined,
  parameters: ReadonlyMap<string, string>,
): Endpoint {
  if (parameters.has("socket")) fail(text, "a socket needs the scheme nbd+unix or nbds+unix");
  const name = decode(text, host.replace(/^\[(.*)\]$/, "$1"));
  if (host.startsWith("[") && !isIpv6Address(name)) fail(text, "only an IPv6 address goes in brackets");
  if (!host.startsWith("[") && name !== "" && (name.includes(":") || !isHost(name))) {
    fail(text, "the host is neither a name nor an address");
  }
  const number = port === undefined || port === "" ? DEFAULT_PORT : Number(port);
  if (number < 1 || number > 65_535) fail(text, `there is no port ${port}`);
  return { kind: "tcp", host: name === "" ? "localhost" : name, port: number };
}

const PARAMETERS: ReadonlySet<string> = new Set([
  "socket",
  "tls-certificates",
  "tls-psk-file",
  "tls-hostname",
  "tls-verify-peer",
  "tls-type",
]);

function parseQuery(text: string, query: string): ReadonlyMap<string, string> {
  const parameters = new Map<string, string>();
  for (const pair of query.split(/[&;]/)) {
    if (pair === "") continue;
    const equals = pair.indexOf("=");
    const name = decode(text, equals < 0 ? pair : pair.slice(0, equals));
    if (!PARAMETERS.has(name))
      fail(text, `the parameter ${name} is unknown; known are ${[...PARAMETERS].join(", ")}`);
    if (parameters.has(name)) fail(text, `the parameter ${name} is given twice`);
    parameters.set(name, equals < 0 ? "" : decode(text, pair.slice(equals + 1)));
  }
  return parameters;
}

function tlsAddress(
  text: string,
  secure: boolean,
  user: string | undefined,
  parameters: ReadonlyMap<string, string>,
): TlsAddress | undefined {
  const given = [...parameters.keys()].filter((name) => name.startsWith("tls-"));
  if (!secure) {
    if (given.length > 0) fail(text, `${given.join(", ")} need the scheme nbds or nbds+unix`);
    if (user !== undefined) fail(text, "a user name needs the scheme nbds or nbds+unix");
    return undefined;
  }
  for (const name of given) {
    if (parameters.get(name) === "") fail(text, `${name} is empty: give it a value, or leave it out`);
  }
  const type = tlsType(text, parameters);
  const certificates = parameters.get("tls-certificates");
  const pskFile = parameters.get("tls-psk-file");
  const hostname = parameters.get("tls-hostname");
  const verify = parameters.get("tls-verify-peer");
  if (verify !== undefined && !["0", "1", "false", "true"].includes(verify)) {
    fail(text, "tls-verify-peer is 0 or 1");
  }
  if (hostname !== undefined && !isHost(hostname)) {
    fail(text, "tls-hostname is neither a name nor an address");
  }
  if (certificates !== undefined && pskFile !== undefined) {
    fail(text, "tls-certificates and tls-psk-file exclude each other");
  }
  return {
    ...(type === undefined ? {} : { type }),
    ...(certificates === undefined ? {} : { certificates }),
    ...(pskFile === undefined ? {} : { pskFile }),
    ...(user === undefined || user === "" ? {} : { username: decode(text, user) }),
    ...(hostname === undefined ? {} : { hostname }),
    ...(verify === undefined ? {} : { verifyPeer: verify === "1" || verify === "true" }),
  };
}

function tlsType(text: string, parameters: ReadonlyMap<string, string>): TlsAddress["type"] {
  const type = parameters.get("tls-type");
  if (type === "x509" && parameters.has("tls-psk-file")) {
    fail(text, "tls-type=x509 and tls-psk-file exclude each other");
  }
  if (type === "psk" && parameters.has("tls-certificates")) {
    fail(text, "tls-type=psk and tls-certificates exclude each other");
  }
  if (type === undefined || type === "x509" || type === "psk") return type;
  if (type !== "anon") fail(text, "tls-type is x509 or psk");
  throw new UriError(
    "NBD_URI_UNSUPPORTED",
    `${text}: anonymous TLS protects against nobody and is not supported`,
  );
}

function decode(text: string, part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return fail(text, `${part} is not percent-encoded UTF-8`);
  }
}

function encode(part: string): string {
  return encodeURIComponent(part).replaceAll("%2F", "/");
}

function fail(text: string, problem: string): never {
  throw new UriError(
    "NBD_URI_INVALID",
    `${text}: ${problem}; expected nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH`,
  );
}
