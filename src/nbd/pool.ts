/** The connections to one export: opens them, detects their loss and replaces them. */

import { setTimeout as sleep } from "node:timers/promises";
import { abortable, aborted, anySignal } from "./abort.js";
import type { Connection } from "./connection.js";
import { ConnectionError, MetaContextError, wasNeverSent } from "./errors.js";
import { difference, type ExportInfo } from "./export-info.js";
import { isChange, isHopeless, isLoss, WATCHED_LOSSES } from "./losses.js";
import type { MapLimits } from "./map-limits.js";
import { openConnection } from "./open-connection.js";
import { Outage } from "./outage.js";
import { SameServer } from "./same-server.js";
import type { NbdEvent, Reconnect, Settings } from "./settings.js";
import { describe } from "./socket.js";

/** Whether a request may be sent again after its connection was lost. */
interface Repeat {
  readonly repeatable: boolean;
  readonly signal: AbortSignal | undefined;
}

/** The longest time that Node's timers hold. */
const MOST_MS = 2 ** 31 - 1;
/** A server that hangs up on the same request each time must not be asked for ever. */
const MOST_REPEATS = 100;

/** How long `close` waits for a handshake, which a server that works ends at once; then it hangs up. */
const HANDSHAKE_ENDS_WITHIN_MS = 2000;

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
  #losses = 0;
  /** Since a connection was lost, until the next answer. */
  #outage: Outage | undefined;
  /** Bytes moved over connections that have ended. */
  #pastBytes = 0;
  /** When a connection was last given up as too slow or silent, and the bytes moved until then. */
  #slow: { readonly at: number; readonly bytes: number } | undefined;
  #isTooSlow = false;
  /** Why a wait for a connection failed. */
  readonly #inVain = new WeakSet<Error>();
  readonly #server: SameServer | undefined;
  #reconnecting: Promise<void> | undefined;
  /** When it fires, no connection is made any more; handshakes that have begun go on. */
  readonly #stop = new AbortController();
  /** Ends handshakes, too. */
  readonly #hangUp = new AbortController();
  #extras: Promise<unknown> = Promise.resolve();
  /** Extra connections that are being opened. */
  #opening = 0;
  #wanted: number;

  private constructor(settings: Settings, first: Connection, server: SameServer | undefined) {
    this.#server = server;
    this.export = first.export;
    this.#settings = settings;
    this.#wanted = settings.connections;
    this.#adopt(first);
    this.#openExtras();
  }

  static async open(settings: Settings): Promise<Pool> {
    const server = settings.reconnect?.sameServer ? await SameServer.of(settings.endpoint) : undefined;
    return new Pool(settings, await openConnection(settings, settings.signal), server);
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
    for (let spent = 0; ; spent++) {
      const connection =
        this.idlest ?? (await this.#wait(repeat.signal).catch((error) => this.#final(error)));
      try {
        return await request(connection);
      } catch (error) {
        const isHarmless = repeat.repeatable || wasNeverSent(error);
        if (!isHarmless || !this.mayRepeat(error, spent)) throw error;
      }
    }
  }

  /**
   * Whether a failed request that may be repeated could succeed over another connection.
   * @param spent how often it was repeated already
   */
  mayRepeat(error: unknown, spent: number): boolean {
    const { reconnect } = this.#settings;
    if (reconnect === undefined || !isLoss(error) || this.#inVain.has(error as Error)) return false;
    if (this.#stop.signal.aborted || reconnect.signal?.aborted) return false;
    if (spent >= MOST_REPEATS) return false;
    if (reconnect.withinMs === undefined) return spent < reconnect.attempts;
    this.#outage?.needed();
    return !this.#isTooSlow && this.#outage?.isOver !== true;
  }

  /** After a failed wait for a connection there is no repetition. */
  #final(error: Error): never {
    this.#inVain.add(error);
    throw error;
  }

  /** To be called after sinks were closed: perhaps no caller waits for the remaining replies. */
  noteAbandoned(): void {
    for (const connection of [...this.#live, ...this.#retiring.keys()]) connection.noteAbandoned();
  }

  /**
   * Resolves when no reply is outstanding on any connection, not even to an aborted request, and no
   * connection is being made.
   */
  async idle(): Promise<void> {
    await Promise.allSettled([this.#reconnecting]);
    await this.#extras;
    await Promise.all([...this.#live, ...this.#retiring.keys()].map((connection) => connection.idle()));
  }

  /** See `NbdClient.stopConnecting`. */
  stopConnecting(withinMs: number): void {
    this.#stop.abort();
    setTimeout(() => this.#hangUp.abort(), withinMs).unref();
  }

  /** A handshake that has begun is waited for: not every server survives that its client leaves in it. */
  async close(): Promise<void> {
    this.#stop.abort();
    const late = setTimeout(() => this.#hangUp.abort(), HANDSHAKE_ENDS_WITHIN_MS);
    await Promise.allSettled([this.#extras, this.#reconnecting]);
    clearTimeout(late);
    await Promise.all([...this.#live.map((connection) => connection.close()), ...this.#retiring.values()]);
    for (const connection of this.#live) this.#forget(connection);
  }

  /** The least busy connection; undefined if there is none. */
  get idlest(): Connection | undefined {
    let best: Connection | undefined;
    // Asked for each request: an iterator would cost more than the comparison.
    for (let i = 0; i < this.#live.length; i += 1) {
      const connection = this.#live[i] as Connection;
      if (connection.ended === undefined && (best === undefined || connection.load < best.load)) {
        best = connection;
      }
    }
    return best;
  }

  /** A connection when there is none: reconnects if that is enabled. */
  async #wait(signal: AbortSignal | undefined): Promise<Connection> {
    const { reconnect, endpoint } = this.#settings;
    for (;;) {
      if (this.#stop.signal.aborted) throw this.#closed();
      if (signal?.aborted) throw aborted(signal);
      if (reconnect !== undefined) {
        this.#reconnecting ??= this.#reconnect(reconnect).finally(() => {
          this.#reconnecting = undefined;
        });
        await this.#unlessStopped(abortable(abortable(this.#reconnecting, signal), reconnect.signal));
      }
      const connection = this.idlest;
      if (connection !== undefined) return connection;
      // The new connection may be lost already.
      const outage = this.#outage;
      if (reconnect?.withinMs !== undefined && outage && !outage.isOver) continue;
      if (outage === undefined) {
        throw new ConnectionError("NBD_CONNECTION_LOST", `the connection to ${describe(endpoint)} is gone`);
      }
      throw reconnect?.withinMs === undefined ? outage.loss : outage.giveUp(outage.loss);
    }
  }

  #closed(): ConnectionError {
    const message = `the client of ${describe(this.#settings.endpoint)} is closed or makes no connection any more`;
    return new ConnectionError("NBD_CLOSED", message);
  }

  /** Settles as `promise` does, or rejects when no connection is to be made any more. */
  #unlessStopped<T>(promise: Promise<T>): Promise<T> {
    const { signal } = this.#stop;
    return abortable(promise, signal).catch((error: unknown) => {
      const isStop = signal.aborted && error instanceof ConnectionError && error.cause === signal.reason;
      throw isStop ? this.#closed() : error;
    });
  }

  async #reconnect({ attempts, delayMs, maxDelayMs, withinMs, prepare }: Reconnect): Promise<void> {
    const { signal } = this.#stop;
    const gone = new ConnectionError("NBD_CONNECTION_LOST", "the connection is gone");
    this.#outage ??= new Outage(gone, withinMs);
    const outage = this.#outage;
    outage.needed();
    if (!outage.isTold) this.#tell({ type: "waiting", error: outage.loss, withinMs });
    outage.isTold = true;
    for (let attempt = 1; ; attempt++) {
      const delay = outage.failures === 0 ? 0 : Math.min(delayMs * 2 ** (outage.failures - 1), maxDelayMs);
      await sleep(Math.min(delay, outage.leftMs), undefined, { signal }).catch(() => {
        throw this.#closed();
      });
      try {
        // Requests on the old connection must have ended: their effect might not be visible over the new one.
        if (!this.export.canMultiConn) await this.#unlessStopped(Promise.all(this.#retiring.values()));
        await this.#prepare(prepare, outage);
        this.#adopt(await this.#openSame(outage.leftMs));
        this.#openExtras();
        return;
      } catch (error) {
        outage.failures += 1;
        this.#tell({ type: "reconnect-failed", error, attempt });
        const isLast = withinMs === undefined ? attempt >= attempts : outage.isOver;
        if (!isLast && !signal.aborted && !isHopeless(error) && !this.#server?.isGone(error)) continue;
        throw withinMs === undefined || signal.aborted || isChange(error) ? error : outage.giveUp(error);
      }
    }
  }

  /** Its failure counts as one to connect. */
  async #prepare(prepare: Reconnect["prepare"], outage: Outage): Promise<void> {
    if (prepare === undefined) return;
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(), Math.min(outage.leftMs, MOST_MS));
    try {
      await prepare(anySignal(this.#stop.signal, late.signal));
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw new ConnectionError("NBD_CONNECT_FAILED", reason, { cause });
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * Opens another connection and checks that it leads to the same export.
   * @param leftMs the time for it, if that is less than `connectTimeoutMs`
   */
  async #openSame(leftMs: number = MOST_MS): Promise<Connection> {
    const connectTimeoutMs = Math.min(this.#settings.connectTimeoutMs, leftMs);
    const where = describe(this.#settings.endpoint);
    const changed = (change: string) =>
      new ConnectionError("NBD_EXPORT_CHANGED", `the export at ${where} has changed: ${change}`);
    const connection = await openConnection(
      { ...this.#settings, connectTimeoutMs },
      this.#hangUp.signal,
      this.#stop.signal,
    ).catch((error: unknown) => {
      throw error instanceof MetaContextError ? changed(error.message) : error;
    });
    try {
      await this.#server?.assert();
      const change = difference(this.export, connection.export);
      if (change !== undefined) throw changed(change);
      if (this.#hangUp.signal.aborted) throw aborted(this.#hangUp.signal);
      return connection;
    } catch (error) {
      await connection.close();
      throw error;
    }
  }

  /** Raises the number of connections to `connections`, if the server allows several. */
  widen(connections: number): void {
    if (connections <= this.#wanted) return;
    this.#wanted = connections;
    this.#openExtras();
  }

  /**
   * Opens missing connections in the background. Failures to open one are ignored. If none lives, the next
   * request opens one, and after that the others are opened.
   */
  #openExtras(): void {
    if (this.#live.length === 0 || !this.export.canMultiConn || this.#stop.signal.aborted) return;
    const missing = Math.max(0, this.#wanted - this.#live.length - this.#opening);
    this.#opening += missing;
    const openings = Array.from({ length: missing }, async () => {
      try {
        this.#adopt(await this.#openSame());
      } catch (error) {
        if (!this.#stop.signal.aborted) {
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
    const during = this.#outage;
    if (during !== undefined) connection.whenAnswered = this.#answered;
    const openedAt = performance.now();
    connection.onLost = (error) => {
      this.#forget(connection);
      this.#losses += 1;
      if (WATCHED_LOSSES.has(error.code)) this.#noteSlow(openedAt);
      if (during !== undefined && during === this.#outage) during.failures += 1;
      this.#outage ??= new Outage(error, this.#settings.reconnect?.withinMs);
      for (const other of this.#live) other.whenAnswered = this.#answered;
      this.#awaitLeave(connection);
      this.#tell({ type: "lost", error, connections: this.#live.length });
      // While other connections live, no request waits for a new one, so it is opened in the background. If
      // none is left, the next request opens one. A connection on which the server hung up before it got a
      // request is not replaced in the background either, because the server might do that again and again;
      // nor is one after several that were lost without any answer.
      const isMissed = this.#settings.reconnect !== undefined && connection.requests > 0;
      const isHealthy = this.#live.length > 0 && (this.#outage?.failures ?? 0) < this.#wanted;
      if (isMissed && isHealthy) this.#openExtras();
    };
  }

  /** The next answer over any connection ends an outage. */
  readonly #answered = (): void => {
    const outage = this.#outage;
    this.#outage = undefined;
    for (const connection of this.#live) connection.whenAnswered = undefined;
    if (outage?.isTold) this.#tell({ type: "back", afterMs: outage.lastedMs });
  };

  /**
   * A new connection forgives the old one's delay, so a server could stay below `minRate` for ever. If it has
   * answered since, but moved too little since the last such loss, it is too slow for good.
   */
  #noteSlow(openedAt: number): void {
    const at = performance.now();
    const bytes = this.#live.reduce((sum, { bytesMoved }) => sum + bytesMoved, this.#pastBytes);
    const last = this.#slow;
    if (last !== undefined && this.#outage === undefined && openedAt > last.at) {
      this.#isTooSlow = bytes - last.bytes < (this.#settings.minRate * (at - last.at)) / 1000;
    }
    this.#slow = { at, bytes };
  }

  /** A lost connection takes no more requests, but may still wait for replies. */
  #awaitLeave(connection: Connection): void {
    const forget = (): void => void this.#retiring.delete(connection);
    this.#retiring.set(connection, connection.close().then(forget, forget));
  }

  #forget(connection: Connection): void {
    this.#live = this.#live.filter((other) => other !== connection);
    this.#pastRequests += connection.requests;
    this.#pastBytes += connection.bytesMoved;
  }

  /** Deferred to a microtask, so that nothing the listener does or throws can interfere with the caller. */
  #tell(event: NbdEvent): void {
    queueMicrotask(() => this.#settings.onEvent(event));
  }
}
