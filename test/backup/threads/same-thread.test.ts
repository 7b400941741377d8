import { expect, it } from "vitest";
import { BackupError } from "../../../src/backup/base/errors.js";
import { SameThread } from "../../../src/backup/threads/same-thread.js";

const failed = (failure: unknown): BackupError => new BackupError("E_TEST", String(failure));

/** Blocks the thread, as reading does. */
function work(milliseconds: number): void {
  const end = performance.now() + milliseconds;
  while (performance.now() < end);
}

it("gives timers and signals a turn between requests that were made at once", async () => {
  let turns = 0;
  const thread = new SameThread<number, number, never>(
    {
      answer: (question) => {
        work(25);
        return question;
      },
    },
    { failed },
  );
  const timer = setInterval(() => {
    turns += 1;
  }, 1);
  try {
    const answers = await Promise.all([1, 2, 3, 4, 5].map((question) => thread.ask(question)));
    expect(answers).toEqual([1, 2, 3, 4, 5]);
    expect(turns).toBeGreaterThanOrEqual(3);
  } finally {
    clearInterval(timer);
  }
});

it("answers nothing after it is closed, and releases what it holds after the last answer", async () => {
  const done: string[] = [];
  const thread = new SameThread<string, string, never>(
    {
      answer: async (question) => {
        await new Promise((resolve) => setTimeout(resolve, 10));
        done.push(question);
        return question;
      },
      close: async () => {
        done.push("closed");
      },
    },
    { failed },
  );
  const asked = ["first", "second"].map((question) => thread.ask(question));
  const settled = Promise.allSettled(asked);
  await new Promise((resolve) => setTimeout(resolve, 1));
  const reason = new BackupError("E_TEST", "given up");
  await thread.close(reason);
  expect(await settled).toMatchObject([{ reason }, { reason }]);
  expect(done).toEqual(["first", "closed"]);
});

it("ends what is under way when it is closed, and doesn't wait until it ends by itself", async () => {
  const stop = new AbortController();
  const thread = new SameThread<string, string, never>(
    {
      answer: (question) =>
        new Promise((resolve) => stop.signal.addEventListener("abort", () => resolve(question))),
      stop: () => stop.abort(),
    },
    { failed },
  );
  const reason = new BackupError("E_TEST", "given up");
  const asked = expect(thread.ask("endless")).rejects.toBe(reason);
  await new Promise((resolve) => setTimeout(resolve, 1));
  await thread.close(reason);
  await asked;
});

it("wraps a failure in its owner's error class, and goes on", async () => {
  const thread = new SameThread<string, string, never>(
    {
      answer: async (question) => {
        if (question === "bad") throw new Error("it is bad");
        return question;
      },
    },
    { failed },
  );
  const answers = await Promise.allSettled([thread.ask("bad"), thread.ask("good")]);
  expect(answers).toMatchObject([{ reason: { code: "E_TEST" } }, { value: "good" }]);
});
