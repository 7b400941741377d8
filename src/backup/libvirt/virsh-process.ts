/** How the command `virsh` is run: again where libvirt doesn't answer yet, and once for several questions. */

import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { formatBatch, hasFailed, parseBatch, type Question, type Said } from "./virsh-batch.js";
import { failure, isErrorOf } from "./virsh-errors.js";

export interface VirshOptions {
  /** The connection URI; default is virsh's own (`LIBVIRT_DEFAULT_URI`, or the system's or user's libvirt). */
  readonly connect?: string | undefined;
  /** Ends whatever command runs and refuses further ones. Cleaning up takes another instance: see `withSignal`. */
  readonly signal?: AbortSignal | undefined;
  /** How long a libvirt that doesn't answer is asked again and again, since it may be starting; default not at all. */
  readonly patienceMs?: number | undefined;
  /** For one command; default 90 s, since libvirt itself waits 30 s for a domain that is busy. */
  readonly timeoutMs?: number | undefined;
}

/** How often a libvirt that doesn't answer is asked again. */
const RETRY_MS = 500;
/** Commands that change nothing, so that it doesn't matter how often and beside what they are run. */
const QUESTIONS: ReadonlySet<string> = new Set([
  ...["uri", "dumpxml", "domid", "domblkinfo", "domcapabilities"],
  ...["domjobinfo", "backup-dumpxml", "checkpoint-list", "checkpoint-dumpxml"],
]);
/** In one argument of a process, which can't be of any length. */
const MOST_AT_ONCE = 50;
/** Errors that every question would get. */
const NO_ANSWER = ["E_NO_VIRSH", "E_LIBVIRT", "E_VIRSH_TIMEOUT", "E_DOMAIN_BUSY"];

/** How a virsh ended. */
interface Ran extends Said {
  readonly failed: boolean;
  readonly timedOut: boolean;
  readonly code?: string | undefined;
  readonly cause?: unknown;
}

interface Asked extends Question {
  readonly resolve: (answer: string) => void;
  readonly reject: (error: unknown) => void;
}

/** Whether it is beyond doubt what came of each: one that has failed has complained and printed nothing, all others the reverse. */
function isPlain(said: readonly Said[], failed: boolean): boolean {
  const last = said.at(-1);
  if (last === undefined || hasFailed(last) !== failed) return false;
  return said.every((each) => hasFailed(each) === (each.stdout.trim() === ""));
}

export class VirshProcess {
  readonly #options: VirshOptions;
  /** In this moment. */
  readonly #asked: Asked[] = [];

  constructor(options: VirshOptions) {
    this.#options = options;
  }

  /**
   * Questions that are asked in one moment go to one virsh, which answers them in their order: of its 0.07 s of processor time
   * it spends next to nothing on a question.
   */
  run(command: string, args: readonly string[], about: string): Promise<string> {
    if (!QUESTIONS.has(command)) return this.#alone({ command, args, about });
    return new Promise((resolve, reject) => {
      this.#asked.push({ command, args, about, resolve, reject });
      if (this.#asked.length > 1) return;
      setImmediate(() => {
        const asked = this.#asked.splice(0);
        while (asked.length > 0) void this.#answer(asked.splice(0, MOST_AT_ONCE));
      });
    });
  }

  /** Resolves in any case: the answers, and the errors, are those of the questions. */
  async #answer(asked: readonly Asked[]): Promise<void> {
    try {
      if (asked.length > 1 && (await this.#answerTogether(asked))) return;
      await this.#answerEach(asked);
    } catch (error) {
      for (const { reject } of asked) reject(error);
    }
  }

  async #answerEach(asked: readonly Asked[]): Promise<void> {
    let noAnswer: unknown;
    for (const question of asked) {
      if (noAnswer !== undefined) question.reject(noAnswer);
      else {
        await this.#alone(question).then(question.resolve, (error: unknown) => {
          question.reject(error);
          // That is not about this question: the others would wait as long, for the same.
          if (this.#options.signal?.aborted || NO_ANSWER.some((code) => isErrorOf(error, code)))
            noAnswer = error;
        });
      }
    }
  }

  /** @returns false where something else than a question has failed: then each is to be asked by itself */
  async #answerTogether(asked: readonly Asked[]): Promise<boolean> {
    const mark = `nbdpull-${randomBytes(8).toString("hex")}`;
    const result = await this.#spawn([formatBatch(asked, mark)], asked.length).catch(() => undefined);
    const { connect, signal } = this.#options;
    if (result?.timedOut) {
      for (const { command, about, reject } of asked) reject(failure(command, about, connect, result));
      return true;
    }
    // Where not even a process could be started there is no output at all.
    if (typeof result?.stdout !== "string" || signal?.aborted) return false;
    const said = parseBatch(result, mark, asked.length);
    if (!said || !isPlain(said, result.failed)) return false;
    const answers = said.map((each, index) => {
      const { command = "", about = "" } = asked[index] ?? {};
      return hasFailed(each)
        ? failure(command, about, connect, { stderr: each.stderr, timedOut: false })
        : each.stdout;
    });
    if (answers.some((answer) => isErrorOf(answer, "E_LIBVIRT"))) return false;
    for (const [index, answer] of answers.entries()) {
      if (typeof answer === "string") asked[index]?.resolve(answer);
      else asked[index]?.reject(answer);
    }
    return true;
  }

  async #alone(question: Question): Promise<string> {
    const { signal, patienceMs = 0 } = this.#options;
    const deadline = performance.now() + patienceMs;
    for (;;) {
      try {
        return await this.#execOnce(question);
      } catch (error) {
        if (!isErrorOf(error, "E_LIBVIRT") || performance.now() >= deadline) throw error;
      }
      await sleep(RETRY_MS, undefined, signal && { signal }).catch(() => signal?.throwIfAborted());
    }
  }

  async #execOnce({ command, args, about }: Question): Promise<string> {
    const { connect, signal } = this.#options;
    const result = await this.#spawn([command, ...args]);
    if (!result.failed) return result.stdout;
    signal?.throwIfAborted();
    throw failure(command, about, connect, result);
  }

  /** @param commands how many there are in the words: each may have to wait for a domain that is busy */
  async #spawn(words: readonly string[], commands = 1): Promise<Ran> {
    const { connect, signal, timeoutMs = 90_000 } = this.#options;
    signal?.throwIfAborted();
    return await execa(
      "virsh",
      ["--quiet", ...(connect === undefined ? [] : [`--connect=${connect}`]), ...words],
      {
        // Messages are told apart by their texts, which must not be translations.
        env: { LC_ALL: "C" },
        stdin: "ignore",
        reject: false,
        timeout: timeoutMs * commands,
        ...(signal === undefined ? {} : { cancelSignal: signal }),
      },
    );
  }
}
