import { Breather } from "./breather.js";
import type { BackupError } from "./errors.js";
import type { Answering, ThreadPoolOptions, ThreadService } from "./thread-pool.js";

/** In place of a `ThreadPool`, for work that is done before a thread has started: the caller's own thread answers. */
export class OwnThread<Question, Answer, Notice> implements Answering<Question, Answer, Notice> {
  readonly #service: ThreadService<Question, Answer, Notice>;
  readonly #failed: ThreadPoolOptions["failed"];
  readonly #breather = new Breather();
  #closed: BackupError | undefined;

  constructor(
    service: ThreadService<Question, Answer, Notice>,
    { failed }: Pick<ThreadPoolOptions, "failed">,
  ) {
    this.#service = service;
    this.#failed = failed;
  }

  start(): void {}

  async ask(question: Question): Promise<Answer> {
    await this.#breather.breathe();
    if (this.#closed) throw this.#closed;
    const answer = await Promise.resolve(this.#service.answer(question)).catch((failure: unknown) => {
      throw this.#failed(failure);
    });
    if (this.#closed) throw this.#closed;
    return answer;
  }

  tell(notice: Notice): void {
    this.#service.heed?.(notice);
  }

  async close(reason: BackupError): Promise<void> {
    this.#closed ??= reason;
    await this.#service.close?.();
  }
}
