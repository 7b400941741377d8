/** `--max-age`: what `report`, and `run` with a report, call late. */
import { type Command, Option } from "commander";
import { span } from "./options.js";

export interface MaxAgeOptions {
  /** In seconds. */
  readonly maxAge: number;
}

/** Seconds: a day, and two hours for a backup that takes longer than the one before. */
const DAILY_AND_SOME = 26 * 3600;

export function withMaxAge(command: Command): Command {
  return command.addOption(
    new Option("--max-age <span>", "how old a domain's last good point may be, such as 90m, 26h or 8d")
      .argParser(span)
      .default(DAILY_AND_SOME, "26h"),
  );
}
