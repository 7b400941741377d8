/** The headings in the help of commands that have many options: each is found in the documentation, too. */
import type { Command, Option } from "commander";

/** A command with fewer options has one list of them. */
const MANY = 16;
/** What commander calls options without a heading. */
const PLAIN = "Options:";

/** The options that the help shows, by their headings, in its order. Those without one have an empty one. */
export function optionsByHeading(command: Command): ReadonlyMap<string, readonly Option[]> {
  const help = command.createHelp();
  const headingOf = ({ helpGroupHeading = PLAIN }: Option): string =>
    helpGroupHeading === PLAIN ? "" : helpGroupHeading.replace(/:$/, "");
  return help.groupItems([...command.options], help.visibleOptions(command), headingOf);
}

/**
 * Adds options under a heading. Groups inside it have its heading, too: what reaches a server elsewhere may be
 * about a single thing here.
 * @param add what it does may be anything; options that it adds get the heading
 */
export function grouped(command: Command, heading: string, add: (command: Command) => unknown): Command {
  const outer = command.optionsGroup();
  if (outer === "") command.optionsGroup(`${heading}:`);
  add(command);
  command.optionsGroup(outer);
  return command;
}

/** Takes the headings away where they would be as many as the options. Call it after the last option. */
export function ungroupFew(command: Command): Command {
  if (command.options.length < MANY) for (const option of command.options) option.helpGroup(PLAIN);
  return command;
}
