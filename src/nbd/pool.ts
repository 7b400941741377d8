/** The connections to one export: opens them, detects their loss and replaces them. */

import { setTimeout as sleep } from "node:timers/promises";
import { abortable, aborted } from "./abort.js";
import { Connection } from "./connection.js";
import { dial } from "./dial.js";
import { ConnectionError, OptionError, RequestError, TlsError, wasNeverSent } from "./errors.js";
import { difference, type ExportInfo } from "./export-info.js";
import type { MapLimits } from "./map-limits.js";
import { negotiate } from "./negotiate.js";
import type { NbdEvent, Settings } from "./settings.js";
import { describe } from "./socket.js";

/** Whether and how often a request may be sent again after its connection was lost. */
interface Repeat {
  readonly repeatable: boolean;
  /** Attempts already made; default 0. */
  readonly spent?: number;
  readonly signal: AbortSignal | undefined;
}

export class Pool {
  readonly export: ExportInfo;
  readonly #settings: Settings;
  #live: Connection[] = [];
  /**
   * Connections to servers that are shutting down, with their pending close. None of the promises rejects.
   */
  readonly #retiring = new Map<Connection, Promise<void>>();
  /** Requests sent over connections that have ended. */
  #pastRequests = 0;
  #lastLoss: Error | undefined;
  #losses = 0;
  #reconnecting: Promise<void> | undefined;
  /** Ends background work when it fires. */
  readonly #closing = new AbortController();
  #extras: Promise<unknown> = Promise.resolve();
  /** Extra connections that are being opened. */
  #opening = 0;
  #wanted: number;

  private constructor(settings: Settings, first: Connection) {
    this.export = first.export;
    this.#settings = settings;
    this.#wanted = settings.connections;
    this.#adopt(first);
    this.#openExtras();
  }

  static async open(settings: Settings): Promise<Pool> {
    return new Pool(settings, await openConnection(settings, settings.signal));
  }

  get connections(): number {
    return this.#live.length;
  }

  get isEncrypted(): boolean {
    return this.#settings.secure !== undefined;
  }

  get requests(): number {
    return this.#live.reduce((sum, connection) => sum + connection.requests, this.#pastRequests);
  }

  get mapLimits(): MapLimits {
    return this.#settings;
  }

  /** Whether a reply to anything but block status is outstanding on some connection. */
  get isBusyWithData(): boolean {
    return this.#live.some((connection) => connection.isBusyWithData);
  }

  /** Connections lost so far. */
  get losses(): number {
    return this.#losses;
  }

  /**
   * Makes one request over the least busy connection, and repeats it over another one if that one is lost.
   */
  async run<T>(request: (connection: Connection) => Promise<T>, repeat: Repeat): Promise<T> {
    const { reconnect } = this.#settings;
    const attempts = reconnect?.attempts ?? 0;
    for (let attempt = repeat.spent ?? 0; ; attempt++) {
      const connection = this.idlest ?? (await this.#wait(repeat.signal));
      try {
        return await request(connection);
      } catch (error) {
        const isHarmless = repeat.repeatable || wasNeverSent(error);
        if (attempt >= attempts || !isHarmless || !isLoss(error) || this.#closing.signal.aborted) throw error;
      }
    }
  }

  /** Whether a failed request that may be repeated could succeed over another connection. */
  mayRepeat(error: unknown): boolean {
    return (this.#settings.reconnect?.attempts ?? 0) > 0 && isLoss(error) && !this.#closing.signal.aborted;
  }

  /** To be called after sinks were closed: perhaps no caller waits for the remaining replies. */
  noteAbandoned(): void {
    for (const connection of [...this.#live, ...this.#retiring.keys()]) connection.noteAbandoned();
  }

  /**
   * Resolves when no reply is outstanding on any connection, not even to an aborted request, and no extra
   * connection is in its handshake.
   */
  async idle(): Promise<void> {
    await this.#extras;
    await Promise.all([...this.#live, ...this.#retiring.keys()].map((connection) => connection.idle()));
  }

  async close(): Promise<void> {
    this.#closing.abort();
    await Promise.allSettled([this.#extras, this.#reconnecting]);
    await Promise.all([...this.#live.map((connection) => connection.close()), ...this.#retiring.values()]);
    for (const connection of this.#live) this.#forget(connection);
  }

  /** The least busy connection; undefined if there is none. */
  get idlest(): Connection | undefined {
    let best: Connection | undefined;
    for (const connection of this.#live) {
      if (connection.ended === undefined && (best === undefined || connection.load < best.load)) {
        best = connection;
      }
    }
    return best;
  }

  /** A connection when there is none: reconnects if that is enabled. */
  async #wait(signal: AbortSignal | undefined): Promise<Connection> {
    if (this.#closing.signal.aborted) throw this.#closed();
    if (signal?.aborted) throw aborted(signal);
    if (this.#settings.reconnect !== undefined) {
      this.#reconnecting ??= this.#reconnect().finally(() => {
        this.#reconnecting = undefined;
      });
      await abortable(this.#reconnecting, signal);
    }
    const connection = this.idlest;
    if (connection !== undefined) return connection;
    const where = describe(this.#settings.endpoint);
    throw this.#lastLoss ?? new ConnectionError("NBD_CONNECTION_LOST", `the connection to ${where} is gone`);
  }

  #closed(): ConnectionError {
    return new ConnectionError("NBD_CLOSED", `the client of ${describe(this.#settings.endpoint)} is closed`);
  }

  async #reconnect(): Promise<void> {
    const { attempts, delayMs, maxDelayMs } = this.#settings.reconnect ?? {
      attempts: 0,
      delayMs: 0,
      maxDelayMs: 0,
    };
    const { signal } = this.#closing;
    for (let attempt = 1; ; attempt++) {
      try {
        // Requests on the old connection must have ended: their effect might not be visible over the new one.
        if (!this.export.canMultiConn) await Promise.all(this.#retiring.values());
        this.#adopt(await this.#openSame());
        this.#openExtras();
        return;
      } catch (error) {
        this.#tell({ type: "reconnect-failed", error, attempt });
        if (isHopeless(error) || attempt >= attempts || signal.aborted) throw error;
      }
      await sleep(Math.min(delayMs * 2 ** (attempt - 1), maxDelayMs), undefined, { signal }).catch(() => {
        throw this.#closed();
      });
    }
  }

  /** Opens another connection and checks that it leads to the same export. */
  async #openSame(): Promise<Connection> {
    const connection = await openConnection(this.#settings, this.#closing.signal);
    const change = difference(this.export, connection.export);
    if (change === undefined && !this.#closing.signal.aborted) return connection;
    await connection.close();
    if (change === undefined) throw aborted(this.#closing.signal);
    const where = describe(this.#settings.endpoint);
    throw new ConnectionError("NBD_EXPORT_CHANGED", `the export at ${where} has changed: ${change}`);
  }

  /** Raises the number of connections to `connections`, if the server allows several. */
  widen(connections: number): void {
    if (connections <= this.#wanted || this.#closing.signal.aborted) return;
    this.#wanted = connections;
    this.#openExtras();
  }

  /** Opens missing connections in the background. Failures to open one are ignored. */
  #openExtras(): void {
    if (!this.export.canMultiConn) return;
    const missing = Math.max(0, this.#wanted - this.#live.length - this.#opening);
    this.#opening += missing;
    const openings = Array.from({ length: missing }, async () => {
      try {
        this.#adopt(await this.#openSame());
      } catch (error) {
        if (!this.#closing.signal.aborted) {
          this.#tell({ type: "not-opened", error, connections: this.#live.length });
        }
      } finally {
        this.#opening -= 1;
      }
    });
    this.#extras = Promise.all([this.#extras, ...openings]).then(() => undefined);
  }

  #adopt(connection: Connection): void {
    this.#live.push(connection);
    this.#tell({ type: "opened", connections: this.#live.length });
    connection.onLost = (error) => {
      this.#forget(connection);
      this.#lastLoss = error;
      this.#losses += 1;
      this.#awaitLeave(connection);
      this.#tell({ type: "lost", error, connections: this.#live.length });
      // While other connections live, no request waits for a new one, so it is opened in the background. If
      // none is left, the next request opens one. A connection on which the server hung up before it got a
      // request is not replaced in the background either, because the server might do that again and again.
      const isMissed = this.#settings.reconnect !== undefined && connection.requests > 0;
      if (isMissed && this.#live.length > 0 && !this.#closing.signal.aborted) this.#openExtras();
    };
  }

  /** A lost connection takes no more requests, but may still wait for replies. */
  #awaitLeave(connection: Connection): void {
    const forget = (): void => void this.#retiring.delete(connection);
    this.#retiring.set(connection, connection.close().then(forget, forget));
  }

  #forget(connection: Connection): void {
    this.#live = this.#live.filter((other) => other !== connection);
    this.#pastRequests += connection.requests;
  }

  /** Deferred to a microtask, so that nothing the listener does or throws can interfere with the caller. */
  #tell(event: NbdEvent): void {
    queueMicrotask(() => this.#settings.onEvent(event));
  }
}

/** Whether a failure concerns only the connection, not the request. */
function isLoss(error: unknown): boolean {
  if (error instanceof RequestError) return error.errno === "ESHUTDOWN";
  if (!(error instanceof ConnectionError)) return false;
  return (
    error.code === "NBD_CLOSED_BY_SERVER" ||
    error.code === "NBD_CONNECTION_LOST" ||
    error.code === "NBD_IDLE_TIMEOUT" ||
    error.code === "NBD_REQUEST_TIMEOUT" ||
    error.code === "NBD_TOO_SLOW"
  );
}

/** Whether another attempt to connect would fail in the same way. */
function isHopeless(error: unknown): boolean {
  if (error instanceof ConnectionError) return error.code === "NBD_EXPORT_CHANGED";
  if (error instanceof OptionError) return error.reply !== "SHUTDOWN";
  // A server that is restarting hangs up, too.
  return !(error instanceof TlsError && error.hangUp);
}

async function openConnection(settings: Settings, signal: AbortSignal | undefined): Promise<Connection> {
  const { address, secure, metaContexts, optionalContexts, listContexts } = settings;
  const wish = {
    exportName: address.exportName,
    tls: secure !== undefined,
    metaContexts,
    optionalContexts,
    listContexts,
  };
  const { transport, result, rest } = await dial({ ...settings, signal }, negotiate(wish));
  return new Connection(transport, result, rest, settings);
}
