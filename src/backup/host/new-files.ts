import { unlink } from "node:fs/promises";
import { isMissing } from "./durable-files.js";

interface Closable {
  close(): Promise<void>;
}

/**
 * The files that a job creates: either all are kept or none is. Use it with `await using`: files that were
 * not kept are closed and unlinked at the end of the scope.
 */
export class NewFiles implements AsyncDisposable {
  #paths: string[] = [];
  #open: Closable[] = [];

  /**
   * Takes over a file that was just created, and the object that has it open.
   * @param path an object for a file elsewhere, which is gone when it is closed unfinished
   */
  add<T extends Closable>(path: string | object, open: T): T {
    if (typeof path === "string") this.#paths.push(path);
    this.#open.push(open);
    return open;
  }

  /** Registers a file that a later step creates. It is unlinked if it exists. */
  expect(path: string): void {
    this.#paths.push(path);
  }

  /** Removes what an earlier run has left in the place of a file that is created now. */
  async removeOld(path: string): Promise<void> {
    await unlink(path).catch((error: unknown) => {
      if (!isMissing(error)) throw error;
    });
  }

  async close(): Promise<void> {
    const open = this.#open;
    this.#open = [];
    const closed = await Promise.allSettled(open.map((file) => file.close()));
    for (const outcome of closed) if (outcome.status === "rejected") throw outcome.reason;
  }

  /** From here on nothing is unlinked. */
  keep(): void {
    this.#paths = [];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const file of this.#open) await file.close().catch(() => undefined);
    for (const path of this.#paths) await unlink(path).catch(() => undefined);
  }
}
