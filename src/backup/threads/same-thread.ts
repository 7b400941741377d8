import type { BackupError } from "../base/errors.js";
import { EventLoopTurn } from "./event-loop-turn.js";
import type { Answering, ThreadPoolOptions, ThreadService } from "./thread-pool.js";

/** In place of a `ThreadPool`, for work that is done before a thread has started: the caller's own thread answers. */
export class SameThread<Question, Answer, Notice> implements Answering<Question, Answer, Notice> {
  readonly #service: ThreadService<Question, Answer, Notice>;
  readonly #failed: ThreadPoolOptions["failed"];
  readonly #breather = new EventLoopTurn();
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

  /** One after the other, with a turn for timers and signals in between. */
  ask(question: Question): Promise<Answer> {
    const answer = this.#last.then(() => this.#answer(question));
    this.#last = answer.catch(() => undefined);
    return answer;
  }

  async #answer(question: Question): Promise<Answer> {
    await this.#breather.yieldIfDue();
    this.#assertOpen();
    try {
      const answer = await this.#service.answer(question);
      this.#assertOpen();
      return answer;
    } catch (failure) {
      // Whatever came after the end is its consequence.
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
