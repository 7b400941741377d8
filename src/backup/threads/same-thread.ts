import type { BackupError } from "../base/errors.js";
import { EventLoopTurn } from "./event-loop-turn.js";
import type { Answering, ThreadPoolOptions, ThreadService } from "./thread-pool.js";

/**
 * Answers questions on the caller's own thread, in place of a `ThreadPool`. It is for work that takes less
 * time than the start of a thread. Questions are answered one after the other; timers and signal handlers can
 * run in between.
 */
export class SameThread<Question, Answer, Notice> implements Answering<Question, Answer, Notice> {
  readonly #service: ThreadService<Question, Answer, Notice>;
  readonly #failed: ThreadPoolOptions["failed"];
  readonly #eventLoop = new EventLoopTurn();
  #last: Promise<unknown> = Promise.resolve();
  #closed: BackupError | undefined;

  constructor(
    service: ThreadService<Question, Answer, Notice>,
    { failed }: Pick<ThreadPoolOptions, "failed">,
  ) {
    this.#service = service;
    this.#failed = failed;
  }

  start(): void {}

  ask(question: Question): Promise<Answer> {
    const answer = this.#last.then(() => this.#answer(question));
    this.#last = answer.catch(() => undefined);
    return answer;
  }

  async #answer(question: Question): Promise<Answer> {
    await this.#eventLoop.yieldIfDue();
    this.#assertOpen();
    try {
      const answer = await this.#service.answer(question);
      this.#assertOpen();
      return answer;
    } catch (failure) {
      // A failure after `close` is a consequence of the closing.
      this.#assertOpen();
      throw this.#failed(failure);
    }
  }

  #assertOpen(): void {
    if (this.#closed) throw this.#closed;
  }

  notify(notice: Notice): void {
    this.#last = this.#last.then(() => this.#service.onNotice?.(notice));
  }

  async close(reason: BackupError): Promise<void> {
    this.#closed ??= reason;
    await this.#last;
    await this.#service.close?.();
  }
}
