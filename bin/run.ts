import { setMaxListeners } from "node:events";
import type { Command } from "commander";
import { UsageError } from "../src/backup/base/errors.js";
import { EXIT, exitCodeOf, HANDLED_SIGNALS, InterruptedError } from "./exit-codes.js";
import { optimizeLater } from "./optimize-later.js";
import type { TalkOptions } from "./options.js";
import { Output } from "./output.js";
import { currentSettings, settleRetention } from "./settings.js";
import { chooseColours } from "./terminal.js";

/** What a command's action gets in addition to its options and arguments. */
export interface Context {
  readonly output: Output;
  /** Aborted by Ctrl-C, SIGTERM and SIGHUP. Incomplete output is removed before the program ends. */
  readonly signal: AbortSignal;
}

/**
 * Wraps a command's work: handles signals, prints the result or error, and sets the documented exit code.
 * @param load loads the work, which the command's help does without
 */
export function run<O, A extends (string | readonly string[] | undefined)[]>(
  load: () => Promise<(context: Context, options: O & TalkOptions, ...args: A) => Promise<void>>,
): (...all: unknown[]) => Promise<void> {
  return async (...all) => {
    const command = all.at(-1) as Command;
    const given = all.slice(0, -2) as A;
    settleRetention(command);
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
    const args = (): A => withRepository(command, given) as A;
    try {
      const action = await load();
      optimizeLater();
      await action({ output, signal: interrupted.signal }, options, ...args());
      if (options.strict && output.warnings.length > 0) process.exitCode ??= EXIT.warnings;
    } catch (error) {
      // A failure after a signal is due to the signal, whatever its error says.
      const told = interrupted.signal.aborted && !(error instanceof InterruptedError);
      const cause: unknown = told ? interrupted.signal.reason : error;
      output.failure(cause, await hint(cause, command));
      process.exitCode = exitCodeOf(cause);
    } finally {
      for (const { name, handler } of handlers) process.off(name, handler);
    }
  };
}

async function hint(error: unknown, command: Command): Promise<string | undefined> {
  if (error instanceof InterruptedError) return undefined;
  const { hintFor } = await import("./hints.js");
  const args = withRepository(command, command.args).filter((word) => word !== undefined);
  return await hintFor(error, { command: command.name(), args: args.flat(), options: command.opts() });
}

/**
 * The arguments of a command that takes REPO and maybe DOMAIN. Where a repository is set, REPO may be left out: then
 * one word is the domain, unless it has a slash.
 * @throws {UsageError} `E_USAGE`: neither the command nor anything else names the repository
 */
function withRepository<T extends string | readonly string[] | undefined>(
  command: Command,
  args: readonly T[],
): readonly (T | string | undefined)[] {
  if (command.registeredArguments[0]?.name() !== "repo" || command.name() === "init") return args;
  const { repository } = currentSettings();
  const [first, second] = args;
  if (repository === undefined) {
    if (first !== undefined) return args;
    const message = `which repository? nbdpull ${command.name()} REPO, or NBDPULL_REPOSITORY in the environment, or repository in the configuration file`;
    throw new UsageError("E_USAGE", message);
  }
  if (first === undefined) return [repository];
  const isDomain = second === undefined && typeof first === "string" && !first.includes("/");
  return isDomain ? [repository, first] : args;
}

export type Run = typeof run;
