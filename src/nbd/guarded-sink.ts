import type { PieceSink, RevocableSink } from "./exchange.js";

/** What a sink has thrown, apart from all that can go wrong on the wire: it is no reason to read again. */
class SinkFailure extends Error {
  readonly reason: unknown;

  constructor(reason: unknown) {
    super("the sink failed", { cause: reason });
    this.reason = reason;
  }
}

/** Stands before the sink of a read of many stretches: once one of them has failed, it is handed nothing more. */
export class GuardedSink implements RevocableSink {
  readonly #sink: PieceSink;
  #failure: { readonly reason: unknown } | undefined;

  constructor(sink: PieceSink) {
    this.#sink = sink;
  }

  get isClosed(): boolean {
    return this.#failure !== undefined;
  }

  data(offset: number, bytes: Uint8Array): void {
    if (this.#failure !== undefined) return;
    try {
      this.#sink.data(offset, bytes);
    } catch (error) {
      throw this.#failed(error);
    }
  }

  zeroes(offset: number, length: number): void {
    if (this.#failure !== undefined) return;
    try {
      this.#sink.zeroes(offset, length);
    } catch (error) {
      throw this.#failed(error);
    }
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

  #failed(error: unknown): SinkFailure {
    this.close(error);
    return new SinkFailure(error);
  }
}
