/**
 * Options that hold for a host rather than for one call: from the environment, or from the configuration
 * file. What stands in the command wins, then the environment, then the file.
 *
 *     repository = "/srv/backups"      NBDPULL_REPOSITORY=/srv/backups
 *     compress = "zstd"                NBDPULL_COMPRESS=zstd
 *     keep-daily = 14                  NBDPULL_KEEP_DAILY=14
 *
 * A key is the name of an option, and a table here says for which commands it counts.
 */
import { existsSync } from "node:fs";
import { isAbsolute, resolve } from "node:path";
import { type Command, InvalidArgumentError, type Option } from "commander";
import { hasCode, messageOf, UsageError } from "../src/backup/base/errors.js";
import { isS3Address, parseS3Address } from "../src/backup/s3/address.js";
import { meantIfAny } from "./hint-if-any.js";
import { fillInDefaults } from "./options.js";

const CONFIG_FILE = "/etc/nbdpull.toml";

const BACKUPS = ["backup", "run"];
const GUESTS = ["backup", "doctor", "run"];
const POINTS = ["backup", "attach", "import", "run"];
const EVERY = undefined;

/** The commands that each key counts for; undefined: for all that have the option. */
const KEYS: Readonly<Record<string, readonly string[] | undefined>> = {
  ...Object.fromEntries(["strict", "quiet", "color"].map((key) => [key, EVERY])),
  ...Object.fromEntries(
    ["connect", "scratch", "scratch-reserve", "server", "encrypted", "freeze", "exclude", "level"].map(
      (key) => [key, GUESTS],
    ),
  ),
  ...Object.fromEntries(
    ["format", "compress", "digests", "in-flight", "request-size", "limit-rate", "fsync", "prove-base"].map(
      (key) => [key, POINTS],
    ),
  ),
  ...Object.fromEntries(
    ["host-override", "tls", "tls-ca", "tls-cert", "tls-key"].map((key) => [key, GUESTS]),
  ),
  ...Object.fromEntries(["full-every", "jobs", "connections", "reconnect"].map((key) => [key, BACKUPS])),
  ...Object.fromEntries(
    ["handshake-timeout", "idle-timeout", "min-rate", "map-timeout", "max-extents"].map((key) => [
      key,
      BACKUPS,
    ]),
  ),
  ...Object.fromEntries(
    ["keep-last", "keep-daily", "keep-weekly", "keep-monthly"].map((key) => [key, ["prune", "run"]]),
  ),
  metrics: ["backup", "prune", "verify", "run"],
  "verify-share": ["run"],
  report: ["run"],
  "max-age": ["report", "run"],
};

/** What only the file has: the domains of `nbdpull run`, and whether others may write to the repository. */
const FILE_ONLY: Readonly<Record<string, readonly string[]>> = {
  all: ["run"],
  domains: ["run"],
  skip: ["run"],
  "trust-repository": ["backup", "attach", "import", "prune", "repair", "run"],
};

/** Of the commands that take the repository as an option. */
const WITH_TO = ["backup", "attach", "import", "doctor", "run"];

/** They do without settings that make no sense: nobody should have to mend a file before a restore. */
const READING = [
  ...["restore", "points", "serve", "mount", "unmount", "copy", "report", "stats", "diff"],
  ...["info", "map", "pull", "verify"],
];

/** Settings have no folder that a relative path could start from: timers and shells have different ones. */
const PATHS = ["repository", "scratch", "metrics", "report", "tls-ca", "tls-cert", "tls-key"];

/** Takes the place of a configuration file that is in the way. */
const NO_FILE = "/dev/null";

interface Settings {
  /** Undefined: only the command names it. */
  readonly repository: string | undefined;
  /** The repositories that rules and trust are for, as the file and the environment name them. */
  readonly about: Readonly<Record<"config" | "env", string | undefined>>;
  /** Why some were left out. */
  readonly warnings: readonly string[];
}

let settings: Settings = {
  repository: undefined,
  about: { config: undefined, env: undefined },
  warnings: [],
};

export function currentSettings(): Settings {
  return settings;
}

/** A value for an option, not yet set. */
interface Setting {
  readonly option: Option;
  readonly value: unknown;
}

/**
 * Gives a command the values that it has no flag for. For one that only reads, settings that make no sense
 * become warnings.
 * @param argv of the process
 * @throws {UsageError} `E_CONFIG`: a key, a value, a variable or the file makes no sense
 * @throws {PreconditionError} `E_CONFIG_OTHERS`
 */
export async function applySettings(
  command: Command,
  argv: readonly string[],
  env: NodeJS.ProcessEnv,
): Promise<void> {
  const warnings: string[] = [];
  const tried = async <T>(read: () => T | Promise<T>): Promise<T | undefined> => {
    try {
      return await read();
    } catch (error) {
      const isOfSettings = hasCode(error, "E_CONFIG") || hasCode(error, "E_CONFIG_OTHERS");
      if (!isOfSettings || !READING.includes(command.name())) throw error;
      warnings.push(`settings are left out: ${messageOf(error)}`);
      return undefined;
    }
  };
  const file = await tried(() => fileSettings(command, argv, env));
  for (const setting of file?.given ?? []) set(command, setting, "config");
  for (const key of Object.keys(KEYS)) {
    const name = variableOf(key);
    const value = env[name];
    const setting = value === undefined ? undefined : await tried(() => settingOf(command, key, value, name));
    if (setting) set(command, setting, "env");
  }
  const named = "NBDPULL_REPOSITORY";
  const ofEnv = await tried(() => repositoryIn(env[named], named));
  const repository = ofEnv ?? file?.repository;
  if (repository !== undefined && WITH_TO.includes(command.name())) {
    command.setOptionValueWithSource("to", repository, "config");
  }
  const about = { config: file?.repository ?? ofEnv, env: repository };
  if (file && file.domains.length > 0 && command.name() === "run") {
    command.setOptionValueWithSource("domains", file.domains, "config");
  }
  settings = { repository, about, warnings };
}

interface FileSettings {
  readonly given: readonly Setting[];
  readonly repository: string | undefined;
  readonly domains: readonly string[];
}

async function fileSettings(
  command: Command,
  argv: readonly string[],
  env: NodeJS.ProcessEnv,
): Promise<FileSettings> {
  const named = namedConfig(argv, env);
  const path = resolve(named ?? CONFIG_FILE);
  const file = await valuesOf(path, named === undefined);
  const at = (key: string): string => `${path}: ${key}`;
  const given = Object.entries(file).flatMap(([key, value]) => {
    if (key === "repository" || key === "domains") return [];
    return settingOf(command, key, value, at(key)) ?? [];
  });
  return {
    given,
    repository: repositoryIn(file["repository"], at("repository")),
    domains: domainsIn(file["domains"], at("domains")),
  };
}

function namedConfig(argv: readonly string[], env: NodeJS.ProcessEnv): string | undefined {
  const at = argv.findIndex((word) => word === "--config" || word.startsWith("--config="));
  const word = argv[at];
  if (word === undefined) return env["NBDPULL_CONFIG"] || undefined;
  return word === "--config" ? argv[at + 1] : word.slice("--config=".length);
}

async function valuesOf(path: string, isDefault: boolean): Promise<Readonly<Record<string, unknown>>> {
  if (path === NO_FILE || (isDefault && !existsSync(path))) return {};
  // Most hosts have no such file.
  const { configError, readConfigFile } = await import("./config-file.js");
  const file = await readConfigFile(path, { isDefault });
  if (file === undefined && isDefault) return {};
  if (file === undefined) throw configError(path, "there is no such file");
  const known = ["repository", ...Object.keys(FILE_ONLY), ...Object.keys(KEYS)];
  for (const key of Object.keys(file)) {
    if (known.includes(key)) continue;
    const meant = await meantIfAny(key, known);
    const hint = meant === "" ? {} : { hint: meant.trim() };
    throw configError(path, `there is no setting ${key}${meant}`, undefined, hint);
  }
  return file;
}

/**
 * For the man pages: whether settings name a command's repository, and which variables give it which options.
 */
export function settingsOf(command: Command): {
  readonly repository: boolean;
  readonly variables: readonly (readonly [variable: string, flag: string])[];
} {
  const [first] = command.registeredArguments;
  const takesRepository = first?.name() === "repo" && !first.required;
  const keys = Object.entries(KEYS).filter(([, commands]) => commands?.includes(command.name()) ?? true);
  const variables = keys.flatMap(([key]) => {
    const option = command.options.find(({ long }) => long === `--${key}` || long === `--no-${key}`);
    return option?.long ? [[variableOf(key), option.long] as const] : [];
  });
  return { repository: takesRepository || WITH_TO.includes(command.name()), variables };
}

function variableOf(key: string): string {
  return `NBDPULL_${key.toUpperCase().replaceAll("-", "_")}`;
}

/** Undefined: this command has no such option, it doesn't count for it, or the value is empty. */
function settingOf(command: Command, key: string, value: unknown, where: string): Setting | undefined {
  const commands = KEYS[key] ?? FILE_ONLY[key];
  if (value === "" || (commands && !commands.includes(command.name()))) return undefined;
  const own = command.options.find(({ long }) => long === `--${key}`);
  const negated = command.options.find(({ long }) => long === `--no-${key}`);
  const option = own ?? negated;
  if (option === undefined) return undefined;
  if (PATHS.includes(key)) requireAbsolute(value, where, false);
  const isFlag = own === undefined || own.isBoolean();
  if (isFlag && !isNo(value) && !isYes(value)) throw wrongValue(where, "give true or false");
  const mayBeBare = isFlag || option.optional || negated !== undefined;
  // What the option would be without a setting; of `--no-…`, what it says.
  if (mayBeBare && isNo(value)) return { option, value: negated ? false : undefined };
  if (!mayBeBare || !isYes(value)) return { option, value: parsedBy(option, value, where) };
  const bare = bareValue(key);
  return { option, value: bare === undefined ? true : parsedBy(option, bare, where) };
}

/** What an option means that has no value; undefined: it never has one. */
function bareValue(key: string): string | undefined {
  const [word = ""] = fillInDefaults([`--${key}`]);
  const at = word.indexOf("=");
  return at < 0 ? undefined : word.slice(at + 1);
}

/** Of an option that may be given several times, those of the command replace those of the settings. */
function set(command: Command, { option, value }: Setting, source: "config" | "env"): void {
  const { parseArg } = option;
  if (Array.isArray(value) && parseArg) {
    option.argParser((text, before: unknown) => parseArg(text, before === value ? undefined : before));
  }
  command.setOptionValueWithSource(option.attributeName(), value, source);
}

function repositoryIn(value: unknown, where: string): string | undefined {
  if (value === undefined || value === "") return undefined;
  return requireAbsolute(value, where, true);
}

function requireAbsolute(value: unknown, where: string, mayBeStore: boolean): string {
  if (typeof value === "string" && isAbsolute(value)) return value;
  if (mayBeStore && typeof value === "string" && isS3Address(value)) {
    try {
      parseS3Address(value);
    } catch (error) {
      throw wrongValue(where, messageOf(error));
    }
    return value;
  }
  throw wrongValue(where, `give an absolute path${mayBeStore ? ", or s3://…" : ""}`);
}

function parsedBy(option: Option, value: unknown, where: string): unknown {
  const texts = (Array.isArray(value) ? value : [value]).map((each: unknown) => {
    if (typeof each === "string" || typeof each === "number") return String(each);
    throw wrongValue(where, "give a text or a number");
  });
  const { parseArg } = option;
  try {
    if (!parseArg) return texts.join(",");
    return texts.reduce<unknown>((before, text) => parseArg(text, before), undefined);
  } catch (error) {
    if (error instanceof InvalidArgumentError)
      throw wrongValue(where, `${texts.join(", ")}: ${error.message}`);
    throw error;
  }
}

function domainsIn(value: unknown, where: string): readonly string[] {
  if (value === undefined) return [];
  if (Array.isArray(value) && value.every((each) => typeof each === "string")) return value;
  throw wrongValue(where, 'give a list, such as ["web", "db"]');
}

function isYes(value: unknown): boolean {
  return value === true || ["1", "true", "yes"].includes(String(value));
}

function isNo(value: unknown): boolean {
  return value === false || ["0", "false", "no"].includes(String(value));
}

function wrongValue(where: string, what: string): UsageError {
  const rest = where.startsWith("NBDPULL_") ? "" : ` (or go without this file: --config ${NO_FILE})`;
  return new UsageError("E_CONFIG", `${where}: ${what}${rest}`);
}
