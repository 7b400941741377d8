/** The connections to one export: opens what is wanted, notices losses, replaces what can be replaced. */

import { setTimeout as sleep } from "node:timers/promises";
import { abortable, aborted } from "./abort.js";
import { Connection } from "./connection.js";
import { dial } from "./dial.js";
import { ConnectionError, OptionError, RequestError, TlsError, wasNeverSent } from "./errors.js";
import { difference, type ExportInfo } from "./export-info.js";
import { negotiate } from "./negotiate.js";
import type { NbdEvent, Settings } from "./settings.js";
import { describe } from "./socket.js";

/** Whether a request may be sent again without harm after its connection was lost. */
export interface Repeat {
  readonly repeatable: boolean;
  /** Attempts that were made already; default 0. */
  readonly spent?: number;
  readonly signal: AbortSignal | undefined;
}

export class Pool {
  readonly export: ExportInfo;
  readonly #settings: Settings;
  #live: Connection[] = [];
  /** The leave-takings from servers that are shutting down; none of them rejects. */
  readonly #retiring = new Map<Connection, Promise<void>>();
  /** Requests of connections that are gone. */
  #pastRequests = 0;
  #lastLoss: Error | undefined;
  #losses = 0;
  #reconnecting: Promise<void> | undefined;
  /** Ends what goes on in the background. */
  readonly #closing = new AbortController();
  #extras: Promise<unknown> = Promise.resolve();
  /** Extra connections that are on their way. */
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

  /** Connections lost so far. */
  get losses(): number {
    return this.#losses;
  }

  /** Makes one request over the connection with the least to do, and over others when that one is lost. */
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

  /** Whether a request that failed, and may be repeated, might do better over another connection. */
  mayRepeat(error: unknown): boolean {
    return (this.#settings.reconnect?.attempts ?? 0) > 0 && isLoss(error) && !this.#closing.signal.aborted;
  }

  /** Replies that were waited for are not any more. */
  noteAbandoned(): void {
    for (const connection of [...this.#live, ...this.#retiring.keys()]) connection.noteAbandoned();
  }

  async close(): Promise<void> {
    this.#closing.abort();
    await Promise.allSettled([this.#extras, this.#reconnecting]);
    await Promise.all([...this.#live.map((connection) => connection.close()), ...this.#retiring.values()]);
    for (const connection of this.#live) this.#forget(connection);
  }

  /** The connection with the least to do; undefined where none is left. */
  get idlest(): Connection | undefined {
    let best: Connection | undefined;
    for (const connection of this.#live) {
      if (connection.ended === undefined && (best === undefined || connection.load < best.load)) {
        best = connection;
      }
    }
    return best;
  }

  /** A connection where there is none: by reconnecting, if that is wanted. */
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
        // What still goes over the old connection, the new one might not see.
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

  /** Another connection to what has to be the same export. */
  async #openSame(): Promise<Connection> {
    const connection = await openConnection(this.#settings, this.#closing.signal);
    const change = difference(this.export, connection.export);
    if (change === undefined && !this.#closing.signal.aborted) return connection;
    await connection.close();
    if (change === undefined) throw aborted(this.#closing.signal);
    const where = describe(this.#settings.endpoint);
    throw new ConnectionError(
      "NBD_EXPORT_CHANGED",
      `the export at ${where} is not the same any more: ${change}`,
    );
  }

  /** Has so many connections from now on, if there weren't more already and where the server allows several. */
  widen(connections: number): void {
    if (connections <= this.#wanted || this.#closing.signal.aborted) return;
    this.#wanted = connections;
    this.#openExtras();
  }

  /** Opens what is missing, in the background. One that doesn't come is done without. */
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
      // While others live nobody waits for a new one, so it comes in the background. Where nothing is left, or a
      // server hangs up before it was asked anything, only need brings another attempt.
      const isMissed = this.#settings.reconnect !== undefined && connection.requests > 0;
      if (isMissed && this.#live.length > 0 && !this.#closing.signal.aborted) this.#openExtras();
    };
  }

  /** A connection that is lost for new requests may still wait for replies. */
  #awaitLeave(connection: Connection): void {
    const forget = (): void => void this.#retiring.delete(connection);
    this.#retiring.set(connection, connection.close().then(forget, forget));
  }

  #forget(connection: Connection): void {
    this.#live = this.#live.filter((other) => other !== connection);
    this.#pastRequests += connection.requests;
  }

  /** Later, so that whatever the listener does or throws can't get in the way here. */
  #tell(event: NbdEvent): void {
    queueMicrotask(() => this.#settings.onEvent(event));
  }
}

/** Whether a failure says nothing of the request, only that its connection is gone. */
function isLoss(error: unknown): boolean {
  if (error instanceof RequestError) return error.errno === "ESHUTDOWN";
  if (!(error instanceof ConnectionError)) return false;
  return (
    error.code === "NBD_CLOSED_BY_SERVER" ||
    error.code === "NBD_CONNECTION_LOST" ||
    error.code === "NBD_IDLE_TIMEOUT" ||
    error.code === "NBD_REQUEST_TIMEOUT"
  );
}

/** Whether another attempt to connect would end like this one. */
function isHopeless(error: unknown): boolean {
  if (error instanceof ConnectionError) return error.code === "NBD_EXPORT_CHANGED";
  if (error instanceof OptionError) return error.reply !== "SHUTDOWN";
  // A server that is just restarting hangs up, too.
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
