import { parentPort } from "node:worker_threads";
import type { ThreadMessage, ThreadReply, ThreadService } from "./thread-pool.js";

/** Has this thread answer what its `ThreadPool` asks. */
export function answerQuestions<Question, Answer, Notice = never>(
  service: ThreadService<Question, Answer, Notice>,
): void {
  const port = parentPort;
  port?.on("message", async (message: ThreadMessage<Question, Notice>) => {
    if ("notice" in message) {
      service.onNotice?.(message.notice);
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
