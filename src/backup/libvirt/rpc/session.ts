import type { CallOptions, Keepalive, RpcConnection } from "./connection.js";
import type { DaemonAddress } from "./daemon-address.js";
import { LostError, UnsentError } from "./errors.js";
import { openConnection } from "./open.js";
import type { Procedure } from "./procedure.js";

interface SessionOptions {
  /** For the opening of a connection. */
  readonly timeoutMs: number;
  readonly keepalive?: Keepalive | undefined;
  readonly graceMs?: number | undefined;
}

/** A connection that is being made, or was. */
interface Opening {
  readonly connection: Promise<RpcConnection>;
  readonly giveUp: AbortController;
  waiting: number;
  isOpen: boolean;
}

/**
 * A connection that is made when it is first needed, and again after it was lost. While no call is under way
 * it does not keep the process from ending.
 */
export class RpcSession {
  readonly #address: () => Promise<DaemonAddress>;
  readonly #options: SessionOptions;
  #opening: Opening | undefined;
  #closings = 0;

  constructor(address: () => Promise<DaemonAddress>, options: SessionOptions) {
    this.#address = address;
    this.#options = options;
  }

  /**
   * The open connection. Callers that come meanwhile wait for the same one; it is given up when all of them
   * are aborted.
   */
  async connection(signal: AbortSignal | undefined): Promise<RpcConnection> {
    for (;;) {
      this.#opening ??= this.#open();
      const opening = this.#opening;
      opening.waiting += 1;
      try {
        const connection = await unlessAborted(opening.connection, signal);
        if (!connection.lost.aborted) return connection;
        // Another caller may have seen the loss before, and be opening the next one already.
        this.#forget(opening);
      } finally {
        opening.waiting -= 1;
        if (signal?.aborted && opening.waiting === 0 && !opening.isOpen) {
          // Who comes now opens another one: this one ends by a reason that is not theirs.
          this.#forget(opening);
          opening.giveUp.abort(signal.reason);
        }
      }
    }
  }

  /**
   * Calls once; if the connection is lost meanwhile, and the procedure changes nothing or was not sent, once
   * more over a new one, unless `again` is false.
   * @throws as {@link openConnection} and {@link RpcConnection.call}
   */
  async call<Args, Answer>(
    procedure: Procedure<Args, Answer>,
    args: Args,
    options: CallOptions,
  ): Promise<Answer> {
    const closings = this.#closings;
    const connection = await this.connection(options.signal);
    try {
      return await connection.call(procedure, args, options);
    } catch (error) {
      const isClosed = closings !== this.#closings;
      const canBeRepeated =
        error instanceof UnsentError || (error instanceof LostError && procedure.repeatable);
      if (!canBeRepeated || isClosed || options.again === false) throw error;
    }
    return await (await this.connection(options.signal)).call(procedure, args, options);
  }

  /** Ends the connection. A later call makes a new one. */
  async close(): Promise<void> {
    this.#closings += 1;
    const opening = this.#opening;
    if (opening === undefined) return;
    this.#opening = undefined;
    opening.giveUp.abort(new LostError("this end has closed it"));
    await opening.connection.then(
      (connection) => connection.close(),
      () => undefined,
    );
  }

  #open(): Opening {
    const giveUp = new AbortController();
    const { signal } = giveUp;
    const connection = this.#address().then((address) =>
      openConnection(address, { ...this.#options, signal }),
    );
    const opening: Opening = { connection, giveUp, waiting: 0, isOpen: false };
    connection.then(
      (open) => {
        opening.isOpen = true;
        // It was given up just as it was done: nobody else would close it.
        if (signal.aborted) open.close();
      },
      () => this.#forget(opening),
    );
    return opening;
  }

  #forget(opening: Opening): void {
    if (this.#opening === opening) this.#opening = undefined;
  }
}

/** Settles as `promise` does, or rejects when the signal fires first. */
export async function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return await promise;
  signal.throwIfAborted();
  let stop: () => void = () => undefined;
  const aborted = new Promise<never>((_, reject) => {
    stop = () => reject(signal.reason);
    signal.addEventListener("abort", stop, { once: true });
  });
  return await Promise.race([promise, aborted]).finally(() => signal.removeEventListener("abort", stop));
}
