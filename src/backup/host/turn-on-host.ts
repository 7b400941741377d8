import { createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { hasCode } from "../base/errors.js";

const LOOK_MS = 50;

/**
 * Has the processes of this machine do something short one after the other. Whose turn it is has a socket
 * without a file (one of Linux's abstract names), which ends with the process, however that ends.
 * @param name of what is done; at most 100 bytes. Every user can take it, so this keeps nobody out for good
 * @param mostMs how long to wait for the others, in milliseconds; after that this goes on beside them
 * @returns ends the turn
 */
export async function turnOnHost(name: string, mostMs: number): Promise<AsyncDisposable> {
  const deadline = performance.now() + mostMs;
  for (;;) {
    const server = createServer((client) => client.destroy());
    try {
      await new Promise<void>((resolve, reject) => {
        server.once("error", reject);
        server.listen({ path: `\0${name}` }, resolve);
      });
      return { [Symbol.asyncDispose]: () => new Promise<void>((resolve) => server.close(() => resolve())) };
    } catch (error) {
      if (!hasCode(error, "EADDRINUSE")) throw error;
      if (performance.now() > deadline) return { [Symbol.asyncDispose]: async () => undefined };
    }
    await sleep(LOOK_MS);
  }
}
