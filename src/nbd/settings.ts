/** Options of a connection, and their values once defaults and the URI have been applied. */

import { NbdError, quote } from "./errors.js";
import { isHost } from "./host.js";
import type { Secure, TlsOptions } from "./tls.js";
import { type Endpoint, type NbdAddress, parseNbdUri } from "./uri.js";

/** Options for reaching a server, for any purpose. */
export interface ReachOptions {
  /** Time limit for connecting and negotiating together; default 10,000. */
  readonly connectTimeoutMs?: number;
  /** Aborts connecting; has no effect afterwards. */
  readonly signal?: AbortSignal;
  readonly tls?: TlsOptions;
  /** Connects to this host, but checks the certificate against the host in the URI. Not for a Unix socket. */
  readonly hostOverride?: string;
}

export interface ConnectOptions extends ReachOptions {
  /** Mandatory meta contexts: connecting fails if one isn't granted. */
  readonly metaContexts?: readonly string[];
  /** Meta contexts that are used if the server has them. */
  readonly optionalContexts?: readonly string[];
  /** Asks the server for all its contexts, for `export.availableContexts`. */
  readonly listContexts?: boolean;
  /**
   * Number of connections to spread requests over, if the export allows several; default 1. All but the first
   * are opened in the background; failures to open one are ignored.
   */
  readonly connections?: number;
  /**
   * A connection on which no byte arrives for this time while requests are outstanding is given up; default
   * 60,000.
   */
  readonly idleTimeoutMs?: number;
  /**
   * A connection that leaves a request without a complete reply for this time is given up, even if other
   * bytes arrive. Its requests are sent again if `reconnect` allows it. There is no such limit by default.
   */
  readonly requestTimeoutMs?: number;
  /**
   * Bytes per second that the server has to move on each connection while requests are outstanding; default
   * 1024, and 0 is any rate. It is given up when it has fallen `minRateMs` behind. A reply without
   * payload counts as well: block status with the bytes that it describes, any other by meeting the rate.
   */
  readonly minRate?: number;
  /** How far the server may fall behind `minRate`; default 60,000. */
  readonly minRateMs?: number;
  /** Limit on the time that one walk over the block status waits for nothing else; default 3,600,000. */
  readonly mapTimeoutMs?: number;
  /** Most extents of one context in one walk over the block status; default 32,000,000. */
  readonly maxExtents?: number;
  /** Replaces lost connections. Without it, requests on a lost connection fail. */
  readonly reconnect?: ReconnectOptions;
  /** Called after each event on the connections. */
  readonly onEvent?: (event: NbdEvent) => void;
}

/**
 * Requests on a lost connection are sent again over another one, or over a new one after checking that it has
 * the same size, flags and contexts. Reads and block status are always repeated; writes only if they are
 * marked as idempotent.
 */
export interface ReconnectOptions {
  /** Most consecutive attempts to reconnect, and most repetitions of one request; default 5. */
  readonly attempts?: number;
  /** Delay before the second attempt; doubles with each one. Default 200. */
  readonly delayMs?: number;
  /** Largest delay; default 10,000. */
  readonly maxDelayMs?: number;
  /**
   * How long the server may answer nothing, counted from when a request needs a lost connection to the next
   * complete reply. Until then there is any number of attempts and repetitions, so `attempts` has no effect.
   */
  readonly withinMs?: number;
  /**
   * Only the server of the first connection will do. Over a Unix socket one that is gone isn't waited for,
   * and one that has made the socket anew is refused. Over TCP nothing tells one server from another.
   */
  readonly sameServer?: boolean;
  /** Makes the way to the server again, such as a tunnel; called before each attempt to connect. */
  readonly prepare?: (signal: AbortSignal) => Promise<void>;
  /** Ends all waiting for a lost connection, without harm to the living ones. */
  readonly signal?: AbortSignal;
}

/** The complete settings; what has no default stays undefined. */
export type Reconnect = Required<
  Pick<ReconnectOptions, "attempts" | "delayMs" | "maxDelayMs" | "sameServer">
> &
  Pick<ReconnectOptions, "withinMs" | "prepare" | "signal">;

/** Events on the connections of a client; `connections` is the number that live afterwards. */
export type NbdEvent =
  | { readonly type: "opened"; readonly connections: number }
  | { readonly type: "not-opened"; readonly error: unknown; readonly connections: number }
  | { readonly type: "lost"; readonly error: NbdError; readonly connections: number }
  | { readonly type: "reconnect-failed"; readonly error: unknown; readonly attempt: number }
  /** Requests wait, since no connection is left. */
  | { readonly type: "waiting"; readonly error: NbdError; readonly withinMs: number | undefined }
  /** The first reply has come after that. */
  | { readonly type: "back"; readonly afterMs: number };

/** Complete settings for reaching the server. */
interface Reach {
  readonly address: NbdAddress;
  readonly endpoint: NbdAddress["transport"];
  readonly secure: Secure | undefined;
  readonly connectTimeoutMs: number;
  readonly signal: AbortSignal | undefined;
}

export interface Settings extends Reach {
  readonly metaContexts: readonly string[];
  readonly optionalContexts: readonly string[];
  readonly listContexts: boolean;
  readonly connections: number;
  readonly idleTimeoutMs: number;
  readonly requestTimeoutMs: number | undefined;
  readonly minRate: number;
  readonly minRateMs: number;
  readonly mapTimeoutMs: number;
  readonly maxExtents: number;
  readonly reconnect: Reconnect | undefined;
  readonly onEvent: (event: NbdEvent) => void;
}

/** @throws {UriError} @throws {TlsError} @throws {NbdError} NBD_ARGUMENT */
export async function resolveReach(target: string | NbdAddress, options: ReachOptions): Promise<Reach> {
  const address = typeof target === "string" ? parseNbdUri(target) : target;
  return {
    address,
    endpoint: resolveEndpoint(address.transport, options.hostOverride),
    secure: await secureFor(address, options.tls),
    connectTimeoutMs: positive("connectTimeoutMs", options.connectTimeoutMs ?? 10_000),
    signal: options.signal,
  };
}

/** TLS takes longer to load than everything else together, so it is loaded only if needed. */
async function secureFor(address: NbdAddress, tls: TlsOptions | undefined): Promise<Secure | undefined> {
  if (address.tls === undefined && tls === undefined) return undefined;
  const { prepareTls } = await import("./tls.js");
  return await prepareTls(address, tls);
}

function resolveEndpoint(transport: Endpoint, hostOverride: string | undefined): Endpoint {
  if (transport.kind === "unix") {
    if (hostOverride === undefined) return transport;
    throw new NbdError("NBD_ARGUMENT", "hostOverride makes no sense with a unix socket, which has no host");
  }
  checkHost("the address's host", transport.host);
  if (hostOverride === undefined) return transport;
  checkHost("hostOverride", hostOverride);
  return { ...transport, host: hostOverride };
}

function checkHost(name: string, host: string): void {
  // Node would treat an empty one as localhost.
  if (isHost(host)) return;
  throw new NbdError("NBD_ARGUMENT", `${name} is ${quote(host)}, which is neither a name nor an address`);
}

export async function resolveSettings(
  target: string | NbdAddress,
  options: ConnectOptions,
): Promise<Settings> {
  const connections = positive("connections", options.connections ?? 1);
  const { requestTimeoutMs } = options;
  return {
    ...(await resolveReach(target, options)),
    metaContexts: [...(options.metaContexts ?? [])],
    optionalContexts: [...(options.optionalContexts ?? [])],
    listContexts: options.listContexts ?? false,
    connections: Math.floor(connections),
    idleTimeoutMs: positive("idleTimeoutMs", options.idleTimeoutMs ?? 60_000),
    requestTimeoutMs:
      requestTimeoutMs === undefined ? undefined : positive("requestTimeoutMs", requestTimeoutMs),
    minRate: options.minRate === 0 ? 0 : positive("minRate", options.minRate ?? 1024),
    minRateMs: positive("minRateMs", options.minRateMs ?? 60_000),
    mapTimeoutMs: positive("mapTimeoutMs", options.mapTimeoutMs ?? 3_600_000),
    maxExtents: count("maxExtents", options.maxExtents ?? 32_000_000),
    reconnect: options.reconnect === undefined ? undefined : resolveReconnect(options.reconnect),
    onEvent: options.onEvent ?? (() => {}),
  };
}

function resolveReconnect(options: ReconnectOptions): Reconnect {
  const { withinMs, prepare, signal, sameServer = false } = options;
  return {
    sameServer,
    ...(withinMs === undefined ? {} : { withinMs: positive("reconnect.withinMs", withinMs) }),
    ...(prepare === undefined ? {} : { prepare }),
    ...(signal === undefined ? {} : { signal }),
    attempts: positive("reconnect.attempts", options.attempts ?? 5),
    delayMs: positive("reconnect.delayMs", options.delayMs ?? 200),
    maxDelayMs: positive("reconnect.maxDelayMs", options.maxDelayMs ?? 10_000),
  };
}

function count(name: string, value: number): number {
  if (Number.isSafeInteger(value) && value >= 1) return value;
  throw new NbdError("NBD_ARGUMENT", `${name} is ${value}; it has to be a whole number, 1 or more`);
}

function positive(name: string, value: number): number {
  // Node's timers hold 31 bits.
  if (value >= 1 && value < 2 ** 31) return value;
  throw new NbdError("NBD_ARGUMENT", `${name} is ${value}; it has to be at least 1 and below 2^31`);
}
