import { type Command, InvalidArgumentError } from "commander";
import { withWhose } from "../domain-options.js";
import { withTrust } from "../options.js";
import type { Run } from "../run.js";

export function addPrune(program: Command, run: Run): void {
  const command = program
    .command("prune")
    .description("drop old points, and merge what later ones need of them; every kept point stays restorable")
    .argument("<repo>")
    .argument("[domain]", "left out: every domain, each by itself")
    .option("--keep-last <n>", "keep the newest N points", count)
    .option("--keep-daily <n>", "keep the newest point of each of the last N days that have points", count)
    .option("--keep-weekly <n>", "the same of weeks, which begin on Monday", count)
    .option("--keep-monthly <n>", "the same of months", count)
    .option("--dry-run", "only tell what would be done")
    .option("--no-fsync", "do not flush to stable storage: faster, and not safe against a power cut");
  withTrust(withWhose(command)).action(run(async () => (await import("../commands/prune.js")).runPrune));
}

function count(text: string): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value >= 0 && /^\d+$/.test(text)) return value;
  throw new InvalidArgumentError("It has to be a whole number, 0 or more.");
}
