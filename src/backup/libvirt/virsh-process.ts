/**
 * Runs the command `virsh`: retries while libvirt doesn't answer yet, and asks several questions in one
 * process.
 */

import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { hasCode } from "../base/errors.js";
import { formatBatch, hasFailed, parseBatch, type Question, type Said } from "./virsh-batch.js";
import { failure } from "./virsh-errors.js";

export interface VirshOptions {
  /**
   * The connection URI; default is virsh's own (`LIBVIRT_DEFAULT_URI`, or the system's or user's libvirt).
   */
  readonly connect?: string | undefined;
  /** Ends the running command and refuses further ones. Clean-up needs another instance: see `withSignal`. */
  readonly signal?: AbortSignal | undefined;
  /** How long to retry while libvirt doesn't answer, since it may be starting; by default not at all. */
  readonly patienceMs?: number | undefined;
  /** Limit for one command; default 90 s, since libvirt itself waits 30 s for a busy domain. */
  readonly timeoutMs?: number | undefined;
}

/** Time between two attempts while libvirt doesn't answer. */
const RETRY_MS = 500;
/** Commands that change nothing, so they can be repeated and combined. */
const QUESTIONS: ReadonlySet<string> = new Set([
  ...["uri", "dumpxml", "domid", "domblkinfo", "domcapabilities"],
  ...["domjobinfo", "backup-dumpxml", "checkpoint-list", "checkpoint-dumpxml"],
  ...["vol-path", "vol-info"],
]);
/** Commands in one argument of a process, since its length is limited. */
const MOST_AT_ONCE = 50;
/** Errors that don't depend on the question. */
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

/**
 * Whether the outcome of each command is clear: a failed one printed an error and no output, the others the
 * reverse.
 */
function isPlain(said: readonly Said[], failed: boolean): boolean {
  const last = said.at(-1);
  if (last === undefined || hasFailed(last) !== failed) return false;
  return said.every((each) => hasFailed(each) === (each.stdout.trim() === ""));
}

export class VirshProcess {
  readonly #options: VirshOptions;
  /** Questions that were asked in this turn of the event loop. */
  readonly #asked: Asked[] = [];

  constructor(options: VirshOptions) {
    this.#options = options;
  }

  /**
   * Sends all questions of one turn of the event loop to one virsh, which answers them in order. A virsh
   * takes 0.07 s of processor time, hardly any of it for a question.
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

  /** Always resolves: answers and errors go to the promises of the questions. */
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
          // The error doesn't depend on the question: the others would wait as long for the same error.
          if (this.#options.signal?.aborted || NO_ANSWER.some((code) => hasCode(error, code)))
            noAnswer = error;
        });
      }
    }
  }

  /** @returns false if something other than a question failed: then each has to be asked separately */
  async #answerTogether(asked: readonly Asked[]): Promise<boolean> {
    const mark = `nbdpull-${randomBytes(8).toString("hex")}`;
    const result = await this.#spawn([formatBatch(asked, mark)], asked.length).catch(() => undefined);
    const { connect, signal } = this.#options;
    if (result?.timedOut) {
      for (const { command, about, reject } of asked) reject(failure(command, about, connect, result));
      return true;
    }
    // There is no output if the process could not be started.
    if (typeof result?.stdout !== "string" || signal?.aborted) return false;
    const said = parseBatch(result, mark, asked.length);
    if (!said || !isPlain(said, result.failed)) return false;
    const answers = said.map((each, index) => {
      const { command = "", about = "" } = asked[index] ?? {};
      return hasFailed(each)
        ? failure(command, about, connect, { stderr: each.stderr, timedOut: false })
        : each.stdout;
    });
    if (answers.some((answer) => hasCode(answer, "E_LIBVIRT"))) return false;
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
        if (!hasCode(error, "E_LIBVIRT") || performance.now() >= deadline) throw error;
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

  /** @param commands number of commands in `words`: each may have to wait for a busy domain */
  async #spawn(words: readonly string[], commands = 1): Promise<Ran> {
    const { connect, signal, timeoutMs = 90_000 } = this.#options;
    signal?.throwIfAborted();
    // How many file systems were frozen is told only without it.
    const quiet = words[0] === "domfsfreeze" ? [] : ["--quiet"];
    return await execa(
      "virsh",
      [...quiet, ...(connect === undefined ? [] : [`--connect=${connect}`]), ...words],
      {
        // Messages are recognized by their texts, so they must not be translated.
        env: { LC_ALL: "C" },
        stdin: "ignore",
        reject: false,
        timeout: timeoutMs * commands,
        ...(signal === undefined ? {} : { cancelSignal: signal }),
      },
    );
  }
}
