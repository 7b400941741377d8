import { setMaxListeners } from "node:events";
import type { Command } from "commander";
import { UsageError } from "../src/backup/base/errors.js";
import { onWaiting } from "../src/backup/base/waiting.js";
import { refuseBadAddress } from "../src/backup/storage/open-store.js";
import { EXIT, exitCodeOf, HANDLED_SIGNALS, InterruptedError } from "./exit-codes.js";
import { hintIfAny } from "./hint-if-any.js";
import { optimizeLater } from "./optimize-later.js";
import type { TalkOptions } from "./options.js";
import { Output } from "./output.js";
import { currentSettings } from "./settings.js";
import { settleOptions } from "./settled-options.js";
import { chooseColours } from "./terminal.js";

/** What a command's action gets in addition to its options and arguments. */
export interface Context {
  readonly output: Output;
  /** Aborted by Ctrl-C, SIGTERM and SIGHUP. Incomplete output is removed before the program ends. */
  readonly signal: AbortSignal;
}

/**
 * Wraps a command's work: handles signals, prints the result or error, and sets the documented exit code.
 * @param load loads the work, which the command's help does without. What is loaded later takes longer.
 */
export function run<O, A extends (string | readonly string[] | undefined)[]>(
  load: (
    options: NoInfer<O & TalkOptions>,
    ...args: NoInfer<A>
  ) => Promise<(context: Context, options: O & TalkOptions, ...args: A) => Promise<void>>,
): (...all: unknown[]) => Promise<void> {
  return async (...all) => {
    const command = all.at(-1) as Command;
    const given = all.slice(0, -2) as A;
    const { warnings } = currentSettings();
    const words = wordsOf(command);
    const foreign = await settleOptions(
      command,
      takesRepository(command) ? words[0] : command.getOptionValue("to"),
    );
    const options = command.opts<O & TalkOptions>();
    if (options.color !== undefined) chooseColours(options.color);
    const output = new Output({
      json: options.json ?? false,
      quiet: options.quiet ?? false,
      verbose: options.verbose ?? false,
    });
    const interrupted = new AbortController();
    setMaxListeners(0, interrupted.signal);
    const handlers = HANDLED_SIGNALS.map((name) => {
      const handler = (): void => {
        // A second signal ends the program without cleaning up.
        if (interrupted.signal.aborted) process.exit(exitCodeOf(interrupted.signal.reason));
        interrupted.abort(new InterruptedError(name));
      };
      process.on(name, handler);
      return { name, handler };
    });
    const stopListening = onWaiting(({ store, because, seconds }) => {
      const about = seconds === 60 ? "a minute" : `${seconds} s`;
      output.note(`waiting for ${store}, which ${because}, for about ${about}`);
    });
    const to: unknown = command.getOptionValue("to");
    const args = (): A => withRepository(command, given, words) as A;
    try {
      for (const each of [...words, ...(typeof to === "string" ? [to] : [])]) refuseBadAddress(each);
      for (const warning of warnings) output.warn(warning);
      if (foreign !== undefined) sayForeign(foreign, command, output);
      const meant = args();
      const action = await load(options, ...meant);
      optimizeLater();
      await action({ output, signal: interrupted.signal }, options, ...meant);
      if (options.strict && output.warnings.length > 0) process.exitCode ??= EXIT.warnings;
    } catch (error) {
      // A failure after a signal is due to the signal, whatever its error says.
      const told = interrupted.signal.aborted && !(error instanceof InterruptedError);
      const cause: unknown = told ? interrupted.signal.reason : error;
      output.failure(cause, await hint(cause, command, interrupted.signal));
      process.exitCode = exitCodeOf(cause);
    } finally {
      stopListening();
      for (const { name, handler } of handlers) process.off(name, handler);
    }
  };
}

async function hint(error: unknown, command: Command, signal: AbortSignal): Promise<string | undefined> {
  if (error instanceof InterruptedError) return undefined;
  const called = { command: command.name(), args: wordsOf(command), options: command.opts() };
  return await hintIfAny(error, { ...called, signal });
}

/** @throws {UsageError} `E_KEEP_NOTHING`: nothing says what to keep of this repository */
function sayForeign(why: string, command: Command, output: Output): void {
  if (command.name() === "prune") throw new UsageError("E_KEEP_NOTHING", why);
  output.warn(`nothing is pruned: ${why}`);
}

function takesRepository(command: Command): boolean {
  return command.registeredArguments[0]?.name() === "repo" && command.name() !== "init";
}

/** How many words there are without REPO; of most commands one, the domain. */
const OTHER_WORDS: Readonly<Record<string, number>> = { diff: 3, mount: 2 };

/** Where a repository is set, REPO may be left out: then one word is the domain, unless it has a slash. */
function leavesRepositoryOut(command: Command): boolean {
  const { args: words } = command;
  const [first] = words;
  if (first === undefined) return true;
  const others = OTHER_WORDS[command.name()] ?? 1;
  return command.name() !== "report" && words.length === others && !first.includes("/");
}

/** The words of a command as if none had been left out. */
function wordsOf(command: Command): readonly string[] {
  const { repository } = currentSettings();
  if (!takesRepository(command) || repository === undefined || !leavesRepositoryOut(command))
    return command.args;
  return [repository, ...command.args];
}

/**
 * The arguments of a command.
 * @param given as commander has them
 * @throws {UsageError} `E_USAGE`: nothing names the repository, or words are missing
 */
function withRepository(
  command: Command,
  given: readonly (string | readonly string[] | undefined)[],
  words: readonly string[],
): readonly (string | readonly string[] | undefined)[] {
  if (!takesRepository(command)) return given;
  if (words.length === 0) {
    const message = `which repository? nbdpull ${command.name()} REPO, or NBDPULL_REPOSITORY in the environment, or repository in the configuration file`;
    throw new UsageError("E_USAGE", message);
  }
  const declared = command.registeredArguments;
  const name = command.name();
  if (Object.hasOwn(OTHER_WORDS, name) && words.length < declared.length) {
    const all = declared.map((each) => each.name().toUpperCase()).join(" ");
    const message = `${name} takes ${all}; where settings name the repository, REPO may be left out`;
    throw new UsageError("E_USAGE", message);
  }
  return declared.map(({ variadic }, index) => (variadic ? words.slice(index) : words[index]));
}

export type Run = typeof run;
