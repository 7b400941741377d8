import { parentPort, type Transferable } from "node:worker_threads";
import type { ThreadMessage, ThreadReply } from "./thread-pool.js";

export interface ThreadService<Question, Answer, Notice> {
  /** May be called again before it has answered. */
  answer(question: Question): Answer | Promise<Answer>;
  /** Memory of the answer that is handed over, not copied. */
  transfer?(answer: Answer): readonly Transferable[];
  heed?(notice: Notice): void;
}

/** Has this thread answer what its `ThreadPool` asks. */
export function serve<Question, Answer, Notice = never>(
  service: ThreadService<Question, Answer, Notice>,
): void {
  const port = parentPort;
  port?.on("message", async (message: ThreadMessage<Question, Notice>) => {
    if ("notice" in message) {
      service.heed?.(message.notice);
      return;
    }
    const { id, question } = message;
    try {
      const answer = await service.answer(question);
      port.postMessage({ id, answer } satisfies ThreadReply<Answer>, service.transfer?.(answer) ?? []);
    } catch (failure) {
      port.postMessage({ id, failure } satisfies ThreadReply<Answer>);
    }
  });
}
