import type { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { LastWords } from "../host/last-words.js";
import { isMounted, unmount } from "./fuse-mounts.js";

/** A program that runs. */
interface Child extends PromiseLike<{ readonly exitCode?: number; readonly signal?: string }> {
  readonly stderr: Readable;
  readonly kill: (signal: "SIGTERM" | "SIGKILL") => boolean;
}

interface Conduct {
  /** Time to mount something. */
  readonly startMs: number;
  readonly pollMs: number;
  /** Time to end after SIGTERM. */
  readonly endMs: number;
  /** Ends the program if it takes longer. */
  readonly kill: () => void;
  /** What is wrong, by what the program said or how it ended. */
  readonly failure: (why: string) => Error;
  /** Why nothing is mounted after `startMs`. */
  readonly tooLate: string;
  /** Whether an end that nobody here asked for is no failure, by what the program said. */
  readonly isEndedByOthers?: (said: string) => boolean;
}

/** A program that mounts something by FUSE, until that is unmounted by anybody. */
export class FuseProcess implements AsyncDisposable {
  readonly path: string;
  /** Settles when the program has ended and its mount is gone. Rejects if nobody asked for that. */
  readonly ended: Promise<void>;
  readonly #child: Child;
  readonly #conduct: Conduct;
  readonly #said = new LastWords();
  #isClosing = false;
  #hasEnded = false;
  /** It has ended because its mount was taken away, by whomever. */
  #isUnmounted = false;

  /** @param path of the mount, without links */
  protected constructor(path: string, child: Child, conduct: Conduct) {
    this.path = path;
    this.#child = child;
    this.#conduct = conduct;
    child.stderr.setEncoding("utf8").on("data", (text: string) => this.#said.add(text));
    this.ended = Promise.resolve(child).then(async (result) => await this.#end(result));
    this.ended.catch(() => undefined);
  }

  /**
   * Waits for its mount. Where this process stood still, somebody may have taken it away before it was seen.
   * @throws as {@link until}
   */
  protected async mounted(signal: AbortSignal | undefined): Promise<void> {
    await this.until(async () => this.#isUnmounted || (await isMounted(this.path)), signal);
  }

  /**
   * Waits for what the program does.
   * @throws `failure` if it ends before that, or takes too long
   * @throws the signal's reason
   */
  protected async until(isDone: () => Promise<boolean>, signal: AbortSignal | undefined): Promise<void> {
    const { startMs, pollMs, failure, tooLate } = this.#conduct;
    const began = performance.now();
    while (!(await isDone())) {
      if (this.#hasEnded) {
        await this.ended;
        if (await isDone()) return;
        throw failure(this.#said.text.trim() || "it ended early");
      }
      signal?.throwIfAborted();
      if (performance.now() - began > startMs) throw failure(tooLate);
      await sleep(pollMs);
    }
  }

  /** Takes the mount away, also from those who read it just now, and ends the program. */
  async close(): Promise<void> {
    this.#isClosing = true;
    this.#child.kill("SIGTERM");
    const kill = setTimeout(this.#conduct.kill, this.#conduct.endMs);
    await this.ended.catch(() => undefined);
    clearTimeout(kill);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #end({ exitCode, signal }: { readonly exitCode?: number; readonly signal?: string }): Promise<void> {
    this.#hasEnded = true;
    // Of a program that was killed the kernel keeps the mount, and every access to it fails.
    const isLeft = await isMounted(this.path);
    if (isLeft) await unmount(this.path, { lazily: true });
    this.#isUnmounted = exitCode === 0 && !isLeft;
    if (this.#isClosing || this.#isUnmounted) return;
    const said = this.#said.text.trim();
    if (this.#conduct.isEndedByOthers?.(said)) return;
    throw this.#conduct.failure(
      said || (signal === undefined ? `exit code ${exitCode}` : `a signal, ${signal}`),
    );
  }
}
