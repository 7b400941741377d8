import { parentPort } from "node:worker_threads";
import pLimit from "p-limit";
import type { ThreadMessage, ThreadReply, ThreadService } from "./thread-pool.js";

/**
 * Answers the questions that the `ThreadPool` sends to this thread.
 * @param options.atOnce the most messages that are handled at the same time; default: one after the other, so
 *   that a notice is handled after the questions before it
 */
export function answerQuestions<Question, Answer, Notice = never>(
  service: ThreadService<Question, Answer, Notice>,
  { atOnce = 1 }: { readonly atOnce?: number } = {},
): void {
  const port = parentPort;
  const limit = pLimit(atOnce);
  port?.on("message", (message: ThreadMessage<Question, Notice>) => {
    void limit(async () => {
      if ("notice" in message) {
        await service.onNotice?.(message.notice);
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
  });
}
