/** `--full-every`: how often `backup` and `run` begin a new chain. */
import { type Command, InvalidArgumentError } from "commander";
import { UsageError } from "../src/backup/base/errors.js";
import type { FullEvery, Level } from "../src/backup/guest/levels.js";
import { grouped } from "./option-groups.js";
import { LEVELS_GROUP } from "./options.js";

export interface FullEveryOptions {
  readonly fullEvery?: FullEvery;
}

const WEEKDAYS = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];
/** Ten years. */
const MOST_DAYS = 3650;

export function withFullEvery(command: Command): Command {
  return grouped(command, LEVELS_GROUP, () =>
    command.option(
      "--full-every <when>",
      "take a full point when the last one is N days old (7), or on a weekday (sunday); else an increment",
      parseFullEvery,
    ),
  );
}

/** @throws {InvalidArgumentError} neither a number of days nor a weekday */
function parseFullEvery(text: string): FullEvery {
  const weekday = WEEKDAYS.indexOf(text.toLowerCase());
  if (weekday >= 0) return { weekday };
  const days = Number(text);
  if (/^\d{1,4}$/.test(text) && days >= 1 && days <= MOST_DAYS) return { days };
  throw new InvalidArgumentError(
    `Give a number of days from 1 to ${MOST_DAYS}, or a weekday such as sunday.`,
  );
}

/** @throws {UsageError} `E_USAGE`: the level is given as well */
export function refuseLevelBeside({ fullEvery, level }: FullEveryOptions & { readonly level: Level }): void {
  if (fullEvery === undefined || level === "auto") return;
  const message = `--full-every says when a full point is due, and --level ${level} says what to take now: leave one of them out`;
  throw new UsageError("E_USAGE", message);
}
