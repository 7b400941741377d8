import type { Ssh } from "./ssh.js";
import { type ForwardOptions, openForward, type SshForward, sever } from "./ssh-forward.js";

/** For an answer over a line that is busy with replies. */
const ANSWER_WITHIN_MS = 10_000;

/**
 * A forwarding through ssh that can be opened again, at the same socket, after ssh was lost or went silent.
 */
export class LastingForward implements AsyncDisposable {
  readonly #ssh: Ssh;
  readonly #options: ForwardOptions;
  #forward: SshForward;
  #opening: Promise<void> | undefined;
  readonly #answerWithinMs: number;

  private constructor(ssh: Ssh, options: ForwardOptions, forward: SshForward, answerWithinMs: number) {
    this.#answerWithinMs = answerWithinMs;
    this.#ssh = ssh;
    this.#options = options;
    this.#forward = forward;
  }

  /** @throws as `openForward` does */
  static async open(
    ssh: Ssh,
    options: ForwardOptions,
    answerWithinMs: number = ANSWER_WITHIN_MS,
  ): Promise<LastingForward> {
    return new LastingForward(ssh, options, await openForward(ssh, options), answerWithinMs);
  }

  /** Aborted when the present ssh is lost. */
  get lost(): AbortSignal {
    return this.#forward.lost;
  }

  /**
   * Opens it again if ssh was lost, or does not answer. Callers share one attempt.
   * @throws as `openForward` does
   */
  async restore(signal: AbortSignal): Promise<void> {
    this.#opening ??= this.#renew(signal).finally(() => {
      this.#opening = undefined;
    });
    await this.#opening;
  }

  /** See `SshForward.explain`. */
  explain(error: unknown): Promise<unknown> {
    return this.#forward.explain(error);
  }

  /** To be called when nobody restores it any more. */
  async close(): Promise<void> {
    await this.#opening?.catch(() => undefined);
    await this.#forward.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #renew(signal: AbortSignal): Promise<void> {
    if (!this.#forward.lost.aborted) {
      if (await this.#forward.answers(this.#answerWithinMs, signal)) return;
      signal.throwIfAborted();
      await this.#forward.kill();
    }
    await this.#open(this.#ssh.withSignal(signal));
  }

  /** The process there may not know yet that ssh is lost, and would keep the server's replies waiting. */
  async #open(ssh: Ssh): Promise<void> {
    const { note } = this.#options;
    if (note !== undefined) await sever(ssh, note);
    this.#forward = await openForward(ssh, this.#options);
  }
}
