/** What `prune` and `run` keep. */
import { type Command, InvalidArgumentError } from "commander";
import { grouped } from "./option-groups.js";

export interface RetentionOptions {
  readonly keepLast?: number | undefined;
  readonly keepDaily?: number | undefined;
  readonly keepWeekly?: number | undefined;
  readonly keepMonthly?: number | undefined;
}

export function withRetention(command: Command): Command {
  return grouped(command, "What to keep", () =>
    command
      .option("--keep-last <n>", "keep the newest N points", count)
      .option("--keep-daily <n>", "keep the newest point of each of the last N days that have points", count)
      .option("--keep-weekly <n>", "the same of weeks, which begin on Monday", count)
      .option("--keep-monthly <n>", "the same of months", count),
  );
}

function count(text: string): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value >= 0 && /^\d+$/.test(text)) return value;
  throw new InvalidArgumentError("It has to be a whole number, 0 or more.");
}
