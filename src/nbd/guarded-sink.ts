import type { PieceSink } from "./exchange.js";

/** What a sink has thrown, apart from all that can go wrong on the wire: it is no reason to read again. */
class SinkFailure extends Error {
  readonly reason: unknown;

  constructor(reason: unknown) {
    super("the sink failed", { cause: reason });
    this.reason = reason;
  }
}

/** Stands before the sink of a read of many stretches: once one of them has failed, it is handed nothing more. */
export class GuardedSink implements PieceSink {
  readonly #sink: PieceSink;
  #failure: { readonly reason: unknown } | undefined;

  constructor(sink: PieceSink) {
    this.#sink = sink;
  }

  data(offset: number, bytes: Uint8Array): void {
    this.#hand(() => this.#sink.data(offset, bytes));
  }

  zeroes(offset: number, length: number): void {
    this.#hand(() => this.#sink.zeroes(offset, length));
  }

  /** The first reason counts. */
  close(reason: unknown): void {
    this.#failure ??= { reason: reason instanceof SinkFailure ? reason.reason : reason };
  }

  /** @throws what it was closed with */
  assertOpen(): void {
    if (this.#failure !== undefined) throw new SinkFailure(this.#failure.reason);
  }

  /** How it all ended. */
  settle(resolve: () => void, reject: (reason: unknown) => void): void {
    if (this.#failure === undefined) resolve();
    else reject(this.#failure.reason);
  }

  #hand(give: () => void): void {
    if (this.#failure !== undefined) return;
    try {
      give();
    } catch (error) {
      this.close(error);
      throw new SinkFailure(error);
    }
  }
}
