/** Commands that name the word that is wrong where commander would only say which option is missing. */
import { Command, type Option, type ParseOptionsResult } from "commander";
import { shellWord } from "../src/backup/base/shell-word.js";

/** What commander does for an option that it doesn't know; its types don't have it. */
interface Refusing {
  unknownOption(flag: string): never;
}

export class UsageCommand extends Command {
  /** The first option that it doesn't know. What is behind `--` is no option, whatever it begins with. */
  #unknown: string | undefined;

  override createCommand(name?: string): Command {
    return new UsageCommand(name);
  }

  override parseOptions(words: string[]): ParseOptionsResult {
    const parsed = super.parseOptions(words);
    [this.#unknown] = parsed.unknown;
    return parsed;
  }

  /** Called by commander for a required option that isn't there, before it looks at unknown ones. */
  missingMandatoryOptionValue(option: Option): never {
    if (this.#unknown !== undefined) (this as unknown as Refusing).unknownOption(this.#unknown);
    const hint = option.long === "--to" ? this.#hintOfPlace() : "";
    const message = `error: required option '${option.flags}' not specified${hint}`;
    return this.error(message, { code: "commander.missingMandatoryOptionValue" });
  }

  /**
   * A path behind the other arguments is most likely the one that the option should have. `vda=DIR/IMAGE` is
   * none: it is what some options take.
   */
  #hintOfPlace(): string {
    const place = this.args.slice(1).findLast((word) => !/^[^/]*=/.test(word));
    return place?.includes("/") ? `\n(Did you mean --to ${shellWord(place)}?)` : "";
  }
}
