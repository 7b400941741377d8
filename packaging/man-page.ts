/** Man pages, from what the help is made of: one of the program, and one of each command. */
import { type Argument, type Command, Help, type Option } from "commander";
import { EXIT_MEANINGS } from "../bin/exit-codes.js";
import { optionsByHeading } from "../bin/option-groups.js";
import { settingsOf } from "../bin/settings.js";
import { type ManProse, manProse } from "./man-prose.js";

interface ManPage {
  /** `nbdpull-backup.1` */
  readonly name: string;
  /** In the language of man(7). */
  readonly text: string;
}

interface Edition {
  readonly version: string;
  /** `2026-11-29` */
  readonly date: string;
  /** The page of a command, in Markdown; of the program, where that is undefined. */
  readonly documentOf: (command: string | undefined) => string;
}

const WIDTH = 76;

/** @param program with all commands */
export function manPages(program: Command, edition: Edition): readonly ManPage[] {
  return [programPage(program, edition), ...program.commands.map((command) => commandPage(command, edition))];
}

function programPage(program: Command, edition: Edition): ManPage {
  const name = program.name();
  const prose = manProse(edition.documentOf(undefined), undefined);
  const commands = program.commands.map((command) =>
    entry(`.BR ${name}\\-${raw(command.name())} (1)`, command.description()),
  );
  return page(name, edition, [
    section("NAME", wrapped(`${name} - pull-mode backups of running virtual machines over NBD`)),
    section("SYNOPSIS", `.B ${name}\n.I COMMAND\n[\\fIARGUMENT\\fR...] [\\fIOPTION\\fR...]`),
    section("DESCRIPTION", prose.text),
    section("COMMANDS", commands.join("\n")),
    section("OPTIONS", optionsOf(program, prose)),
    exitStatus(),
    section("ENVIRONMENT", GENERAL_VARIABLES.map(([term, text]) => entry(bold(term), text)).join("\n")),
    files(),
    seeAlso(program.commands.map((command) => `${name}-${command.name()}`)),
  ]);
}

function commandPage(command: Command, edition: Edition): ManPage {
  const program = command.parent?.name() ?? "";
  const name = `${program}-${command.name()}`;
  const prose = manProse(edition.documentOf(command.name()), command.name());
  const { registeredArguments } = command;
  const described = registeredArguments.filter(({ description }) => description !== "");
  const examples = examplesOf(command);
  return page(name, edition, [
    section("NAME", wrapped(`${name} - ${command.description()}`)),
    section("SYNOPSIS", synopsis(command, program)),
    section("DESCRIPTION", prose.text),
    section("ARGUMENTS", described.map(argumentEntry).join("\n")),
    section("OPTIONS", optionsOf(command, prose)),
    section("EXAMPLES", `.EX\n${examples.map(raw).join("\n")}\n.EE`),
    exitStatus(),
    environment(command),
    files(),
    seeAlso([program]),
  ]);
}

function page(name: string, { version, date }: Edition, sections: readonly string[]): ManPage {
  const title = `.TH ${raw(name.toUpperCase())} 1 ${date} "nbdpull ${version}" "User Commands"`;
  const text = ['.\\" Made by npm run man.', title, ...sections.filter((each) => each !== ""), ""].join("\n");
  return { name: `${name}.1`, text };
}

/** Nothing if there is nothing to say. */
function section(title: string, text: string): string {
  return text === "" ? "" : `.SH ${title}\n${text}`;
}

function synopsis(command: Command, program: string): string {
  const required = command.options.filter(({ mandatory }) => mandatory);
  const parts = [
    ...command.registeredArguments.map(argumentTerm),
    ...required.map(({ flags }) => flagTerm(flags)),
    "[\\fIOPTION\\fR...]",
  ];
  return `.B ${program} ${raw(command.name())}\n${parts.join("\n")}`;
}

function argumentTerm(argument: Argument): string {
  const { required, variadic } = argument;
  const term = `\\fI${raw(argument.name().toUpperCase())}\\fR${variadic ? "..." : ""}`;
  return required ? term : `[${term}]`;
}

function argumentEntry(argument: Argument): string {
  return entry(argumentTerm(argument), new Help().argumentDescription(argument));
}

/** With what the page says of an option, which may be more than the help. */
function optionsOf(command: Command, { options }: ManProse): string {
  return [...optionsByHeading(command)]
    .flatMap(([heading, group]) => [
      ...(heading === "" ? [] : [`.SS ${raw(heading)}`]),
      ...group.map((option) => optionEntry(option, options.get(option.long ?? ""))),
    ])
    .join("\n");
}

function optionEntry(option: Option, told: string | undefined): string {
  const { required, optional, mandatory } = option;
  const text = told ?? new Help().optionDescription(option);
  const term = required || optional ? flagTerm(option.flags) : bold(option.flags);
  return entry(term, `${text}${mandatory ? " (required)" : ""}`);
}

/** `--format <format>`: the flag bold, the value in italics. */
function flagTerm(flags: string): string {
  const [, flag = flags, open = "", value = ""] = /^(\S+) ([<[])(.+)[>\]]$/.exec(flags) ?? [];
  const shown = `\\fI${raw(value.toUpperCase())}\\fR`;
  return `\\fB${raw(flag)}\\fR ${open === "[" ? `[${shown}]` : shown}`;
}

/** What the help has below its heading of examples. */
function examplesOf(command: Command): readonly string[] {
  let help = "";
  command.configureOutput({ writeOut: (text) => (help += text) });
  command.outputHelp();
  const [, examples = ""] = help.split(/^Examples?:$/m);
  return examples
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "");
}

function exitStatus(): string {
  return section("EXIT STATUS", EXIT_MEANINGS.map(([codes, text]) => entry(bold(codes), text)).join("\n"));
}

const GENERAL_VARIABLES: readonly (readonly [string, string])[] = [
  ["NBDPULL_REPOSITORY", "the repository, where the command names none"],
  ["NBDPULL_CONFIG", "settings, instead of /etc/nbdpull.toml"],
  ["NO_COLOR", "if it is set and not empty: no colours"],
  ["LIBVIRT_DEFAULT_URI", "the libvirt connection of commands that have --connect, where that is not given"],
  [
    "AWS_ENDPOINT_URL_S3, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",
    "where a repository in an object store (s3://BUCKET/PREFIX) is, and who we are there; as AWS's own tools read them",
  ],
];

function environment(command: Command): string {
  const { repository, variables } = settingsOf(command);
  const entries = [
    ...(repository
      ? [entry(bold("NBDPULL_REPOSITORY"), "the repository, where the command names none")]
      : []),
    entry(bold("NBDPULL_CONFIG"), "settings, instead of /etc/nbdpull.toml"),
    ...variables.map(([variable, flag]) => entry(bold(variable), meaningOf(flag, command))),
  ];
  return section("ENVIRONMENT", entries.join("\n"));
}

function meaningOf(flag: string, command: Command): string {
  const option = command.options.find(({ long }) => long === flag);
  if (option?.negate) return `false: as with ${flag}`;
  return option?.isBoolean() ? `true: as with ${flag}` : `the value of ${flag}, where it is not given`;
}

function files(): string {
  const text = "settings, each by the name of an option; the command and the environment win over them";
  return section("FILES", entry(`.I ${raw("/etc/nbdpull.toml")}`, text));
}

function seeAlso(names: readonly string[]): string {
  const lines = names.map((name, i) => `.BR ${raw(name)} (1)${i < names.length - 1 ? " ," : ""}`);
  return section("SEE ALSO", lines.join("\n"));
}

/** A paragraph that begins with its term. */
function entry(term: string, text: string): string {
  return `.TP\n${term}\n${flowing(text)}`;
}

function bold(text: string): string {
  return `\\fB${raw(text)}\\fR`;
}

/** Lines of text in the language of man(7). */
function flowing(text: string): string {
  return wrapped(text)
    .split("\n")
    .map((line) => (/^[.']/.test(line) ? `\\&${line}` : line))
    .join("\n");
}

/** Source lines are short, whatever they become: linters want it. No word is torn. */
function wrapped(text: string): string {
  const lines: string[] = [""];
  for (const word of raw(text).split(" ")) {
    const line = lines.at(-1) ?? "";
    if (line !== "" && line.length + word.length >= WIDTH) lines.push(word);
    else lines[lines.length - 1] = line === "" ? word : `${line} ${word}`;
  }
  return lines.join("\n");
}

/** Text as it is to be seen and copied: a hyphen is a minus sign, and nothing is an instruction. */
function raw(text: string): string {
  return text
    .replaceAll("\\", "\\e")
    .replaceAll("-", "\\-")
    .replaceAll("~", "\\(ti")
    .replaceAll("^", "\\(ha")
    .replaceAll("`", "\\(ga")
    .replaceAll("'", "\\(aq")
    .replaceAll('"', "\\(dq")
    .replaceAll(
      /[^\n -~]/gu,
      (character) => `\\[u${(character.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0")}]`,
    );
}
