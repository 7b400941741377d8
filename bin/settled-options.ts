/** What is left of the settings where the command says something else, or is about another repository. */
import type { Command } from "commander";
import type { JobServerOptions } from "./job-server.js";
import { realPlaceOf } from "./place-of.js";
import { currentSettings } from "./settings.js";

const RULES = ["keepLast", "keepDaily", "keepWeekly", "keepMonthly"];
const TLS = ["tls", "tlsCa", "tlsCert", "tlsKey", "hostOverride"];

/** What says it nearer to the command wins over what it contradicts. */
const NEARNESS = { config: 1, env: 2, cli: 3 } as const;
type Source = keyof typeof NEARNESS;
/** Stands for the command's arguments, which have no option's name. */
const WORDS = "";

/**
 * Takes settings away that don't count for this call.
 * @param repository that the command is about; undefined: none
 * @returns which rules of what to keep don't count, and why; undefined: nothing has to be said
 */
export async function settleOptions(
  command: Command,
  repository: string | undefined,
): Promise<string | undefined> {
  const said = (name: string): unknown => command.getOptionValue(name);
  const nearness = (name: string): number =>
    name === WORDS ? NEARNESS.cli : (NEARNESS[command.getOptionValueSource(name) as Source] ?? 0);
  const overrule = (name: string, others: readonly string[]): void => {
    for (const other of others) {
      if (nearness(other) > 0 && nearness(other) < nearness(name)) command.setOptionValue(other, undefined);
    }
  };
  if (said("include") !== undefined) overrule("include", ["exclude"]);
  if (said("format") === "raw") overrule("format", ["compress"]);
  if (said("compress") !== undefined && said("format") === "raw") overrule("compress", ["format"]);
  // What is taken now, and when a full one is due, contradict each other. `auto` is what is left.
  if (said("level") !== undefined) overrule("level", ["fullEvery"]);
  if (said("fullEvery") !== undefined) overrule("fullEvery", ["level"]);
  if (command.options.some(({ long }) => long === "--level")) {
    command.setOptionValueWithSource("level", said("level") ?? "auto", command.getOptionValueSource("level"));
  }
  const server = said("server") as JobServerOptions["server"];
  if (server) overrule("server", server.tcp === undefined ? TLS : ["jobs"]);
  if (command.name() === "run") {
    if (command.args.length > 0) overrule(WORDS, ["all", "skip"]);
    if (said("all") === true) overrule("all", ["domains"]);
  }
  // Rules that the command names replace all others: together they would keep more than it says.
  if (RULES.some((rule) => command.getOptionValueSource(rule) === "cli")) {
    for (const rule of RULES) {
      if (command.getOptionValueSource(rule) !== "cli") command.setOptionValue(rule, undefined);
    }
  }
  return await keepToRepository(command, repository);
}

/** Rules of what to keep, and trust, are for the repository that stands beside them. */
async function keepToRepository(
  command: Command,
  repository: string | undefined,
): Promise<string | undefined> {
  const { about } = currentSettings();
  const isSet = (name: string): boolean => command.getOptionValue(name) !== undefined;
  let told: string | undefined;
  for (const name of [...RULES, "trustRepository"].filter(isSet)) {
    const source = command.getOptionValueSource(name);
    if (source !== "config" && source !== "env") continue;
    const theirs = source === "env" ? about.env : about.config;
    if (theirs !== undefined && repository !== undefined && (await isSame(theirs, repository))) continue;
    command.setOptionValue(name, undefined);
    if (!RULES.includes(name)) continue;
    const whose = theirs === undefined ? "name no repository that they are for" : `are for ${theirs}`;
    told = `the rules of what to keep in the settings ${whose}: for ${repository} give --keep-last, --keep-daily, --keep-weekly or --keep-monthly`;
  }
  return repository === undefined || RULES.some(isSet) ? undefined : told;
}

/** @throws {UsageError} `E_S3_ADDRESS` */
async function isSame(one: string, other: string): Promise<boolean> {
  return one === other || (await realPlaceOf(one)) === (await realPlaceOf(other));
}
