import type { PieceSink, RevocableSink } from "./exchange.js";

/**
 * Wraps an error thrown by a sink, to tell it from failures of the connection: the read must not be repeated.
 */
class SinkFailure extends Error {
  readonly reason: unknown;

  constructor(reason: unknown) {
    super("the sink failed", { cause: reason });
    this.reason = reason;
  }
}

/** Wraps the sink of a read of many stretches: once a stretch has failed, the sink gets no more bytes. */
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

  /** Only the first reason counts. */
  close(reason: unknown): void {
    this.#failure ??= { reason: reason instanceof SinkFailure ? reason.reason : reason };
  }

  /** @throws the reason it was closed with */
  assertOpen(): void {
    if (this.#failure !== undefined) throw new SinkFailure(this.#failure.reason);
  }

  /** Settles the read with the final result. */
  settle(resolve: () => void, reject: (reason: unknown) => void): void {
    if (this.#failure === undefined) resolve();
    else reject(this.#failure.reason);
  }

  #failed(error: unknown): SinkFailure {
    this.close(error);
    return new SinkFailure(error);
  }
}
