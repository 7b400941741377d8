/** Commands that name the word that is wrong where commander would only say which option is missing. */
import { Command, type Option, type ParseOptionsResult } from "commander";
import { shellWord } from "../src/backup/base/shell-word.js";

/** What commander does for an option or a command that it doesn't know; its types don't have it. */
interface Refusing {
  unknownOption(flag: string): never;
  unknownCommand(): never;
}

/**
 * What other programs (restic, borg, virsh, qemu-img) call what a command does. Words that are of one archive
 * there must not lead to a command that is of a whole repository or domain here.
 */
const MEANT: Readonly<Record<string, string>> = {
  check: "verify",
  convert: "pull",
  create: "backup",
  delete: "prune",
  list: "points",
  ls: "points",
  remove: "prune",
  snapshots: "points",
  status: "report",
  umount: "unmount",
  version: "--version",
};

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

  /** Called by commander, which offers only what is spelled alike. */
  unknownCommand(): never {
    const [word = ""] = this.args;
    const meant = Object.hasOwn(MEANT, word) ? MEANT[word] : undefined;
    if (meant === undefined) return (Command.prototype as unknown as Refusing).unknownCommand.call(this);
    const message = `error: unknown command '${word}'\n(Did you mean ${meant}?)`;
    return this.error(message, { code: "commander.unknownCommand" });
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
