/** What may stand where in a command, as shells are told it. Made from the commands themselves. */
import type { Command, Option } from "commander";
import { DIGEST_ALGORITHMS } from "../../src/backup/digest/algorithms.js";
import { optionsByHeading } from "../option-groups.js";

/**
 * What a word may be. `repository`: a folder. `domain`: one that the repository has. `point`: one that the
 * domain has there, or latest. `guest`: a domain of libvirt's. `image`: any file. `anything`: nothing that
 * could be listed.
 */
export type Kind = "repository" | "domain" | "point" | "guest" | "file" | "folder" | "anything";

export interface Values {
  readonly kind: Kind;
  /** What it may be beside that, or all that it may be. */
  readonly words: readonly string[];
}

export interface OptionWords {
  /** `--long`, and `-s` where there is one. */
  readonly flags: readonly string[];
  readonly description: string;
  /** Undefined: it takes none. */
  readonly values: Values | undefined;
  /** The value may be left out: then the next word is one only if it is among `values.words`. */
  readonly mayBeBare: boolean;
  readonly maySayAgain: boolean;
}

export interface CommandWords {
  readonly name: string;
  readonly description: string;
  readonly options: readonly OptionWords[];
  readonly args: readonly Values[];
  /** The last argument may be given several times. */
  readonly isVariadic: boolean;
}

/** By the name that the help has for the value of an option. */
const OF_OPTIONS: Readonly<Record<string, Kind>> = {
  file: "file",
  image: "file",
  path: "file",
  target: "file",
  dir: "folder",
  repo: "repository",
  point: "point",
  id: "point",
};

/** By the name of an argument. Where a command is about the domains of libvirt, its domain is a guest. */
const OF_ARGUMENTS: Readonly<Record<string, Kind>> = {
  repo: "repository",
  image: "file",
  domain: "domain",
  domains: "domain",
  dir: "folder",
  from: "repository",
  to: "repository",
};

const ABOUT_GUESTS: readonly string[] = ["backup", "run", "attach", "doctor"];
const ABOUT_POINTS: readonly string[] = ["diff"];

/** Words that mean something of their own, of options that take others too. */
const SPECIAL: Readonly<Record<string, readonly string[]>> = {
  "--digests": Object.keys(DIGEST_ALGORITHMS),
  "--expect": ["agent", "serial:"],
  "--freeze": ["auto", "no"],
  "--prove-base": ["all", "none"],
  "--uuid": ["none"],
};

export function wordsOf(program: Command): readonly CommandWords[] {
  return program.commands.map((command) => {
    const { registeredArguments } = command;
    return {
      name: command.name(),
      description: command.description(),
      options: [...optionsByHeading(command).values()]
        .flat()
        .map((option) => optionWords(option, command.name())),
      args: registeredArguments.map((argument) => ({
        kind: kindOfArgument(argument.name(), command.name()),
        words: argument.argChoices ?? [],
      })),
      isVariadic: registeredArguments.at(-1)?.variadic ?? false,
    };
  });
}

function kindOfArgument(name: string, command: string): Kind {
  if (ABOUT_POINTS.includes(command) && (name === "from" || name === "to")) return "point";
  const kind = OF_ARGUMENTS[name] ?? "anything";
  return kind === "domain" && ABOUT_GUESTS.includes(command) ? "guest" : kind;
}

function optionWords(option: Option, command: string): OptionWords {
  const { long, short, flags, description, argChoices } = option;
  const flag = long ?? "";
  const [, placeholder = ""] = /[<[](.+)[>\]]/.exec(flags) ?? [];
  const isGuest = placeholder === "domain" && ABOUT_GUESTS.includes(command);
  const kind = isGuest ? "guest" : (OF_OPTIONS[placeholder] ?? "anything");
  const takesValue = option.required || option.optional;
  return {
    flags: [long, short].filter((each) => each !== undefined),
    description,
    values: takesValue ? { kind, words: argChoices ?? SPECIAL[flag] ?? [] } : undefined,
    mayBeBare: option.optional,
    maySayAgain: description.includes("several times"),
  };
}
