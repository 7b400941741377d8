import { lookup } from "node:dns/promises";
import { BlockList, isIP, isIPv6 } from "node:net";
import { UsageError } from "../base/errors.js";

/** A TCP address to listen on; port 0 is any free one. */
export interface TcpAddress {
  readonly host: string;
  readonly port: number;
}

/** The port of NBD. */
const DEFAULT_PORT = 10_809;
const DEFAULT_HOST = "127.0.0.1";

const SHAPE = /^(?:\[([^[\]]+)\]|([^:[\]]+))(?::(\d+))?$/;

const LOOPBACK = new BlockList();
LOOPBACK.addSubnet("127.0.0.0", 8, "ipv4");
LOOPBACK.addAddress("::1", "ipv6");

/**
 * `HOST:PORT`, `HOST`, `PORT` or `[IPv6]:PORT`.
 * @throws {UsageError} anything else
 */
export function parseListenAddress(text: string): TcpAddress {
  const whole = /^\d+$/.test(text) ? `${DEFAULT_HOST}:${text}` : text;
  const [, bracketed, plain, digits = DEFAULT_PORT] = SHAPE.exec(whole) ?? [];
  const host = bracketed ?? plain;
  const port = Number(digits);
  if (host === undefined || port > 65_535 || (bracketed !== undefined && !isIPv6(bracketed))) {
    const message = `"${text}" is no address to listen on: write HOST:PORT, PORT, or [IPv6]:PORT`;
    throw new UsageError("E_LISTEN", message);
  }
  return { host, port };
}

/**
 * Replaces a host's name by its address.
 * @throws {UsageError} the name is unknown
 */
export async function resolveHost({ host, port }: TcpAddress): Promise<TcpAddress> {
  try {
    return { host: (await lookup(host)).address, port };
  } catch (cause) {
    const message = `the host ${host} is unknown: name one of this machine's addresses`;
    throw new UsageError("E_LISTEN", message, { cause });
  }
}

/** Whether only programs of this machine can connect to an address (not a name). */
export function isLoopback(address: string): boolean {
  return LOOPBACK.check(address, isIPv6(address) ? "ipv6" : "ipv4");
}

/** The same for an address or a name. Names are not looked up: only `localhost` counts as local. */
export function isLocalOnly(host: string): boolean {
  return host === "localhost" || (isIP(host) !== 0 && isLoopback(host));
}
