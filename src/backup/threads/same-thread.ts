import pLimit from "p-limit";
import type { BackupError } from "../base/errors.js";
import { EventLoopTurn } from "./event-loop-turn.js";
import type { Answering, ThreadPoolOptions, ThreadService } from "./thread-pool.js";

/**
 * Answers questions on the caller's own thread, in place of a `ThreadPool`. It is for work that takes less
 * time than the start of a thread, or that waits for others most of the time. Timers and signal handlers can
 * run between two questions.
 */
export class SameThread<Question, Answer, Notice> implements Answering<Question, Answer, Notice> {
  readonly #service: ThreadService<Question, Answer, Notice>;
  readonly #failed: ThreadPoolOptions["failed"];
  readonly #eventLoop = new EventLoopTurn();
  readonly #limit: ReturnType<typeof pLimit>;
  readonly #running = new Set<Promise<unknown>>();
  #closed: BackupError | undefined;

  /** @param atOnce the most messages that are handled at the same time; default: one after the other */
  constructor(
    service: ThreadService<Question, Answer, Notice>,
    { failed, atOnce = 1 }: Pick<ThreadPoolOptions, "failed"> & { readonly atOnce?: number | undefined },
  ) {
    this.#service = service;
    this.#failed = failed;
    this.#limit = pLimit(atOnce);
  }

  start(): void {}

  ask(question: Question): Promise<Answer> {
    return this.#run(() => this.#answer(question));
  }

  #run<T>(work: () => Promise<T>): Promise<T> {
    const running = this.#limit(work);
    this.#running.add(running);
    const ended = (): void => void this.#running.delete(running);
    running.then(ended, ended);
    return running;
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
    this.#run(async () => this.#service.onNotice?.(notice)).catch(() => undefined);
  }

  async close(reason: BackupError): Promise<void> {
    this.#closed ??= reason;
    this.#service.stop?.();
    await Promise.allSettled(this.#running);
    await this.#service.close?.();
  }
}
