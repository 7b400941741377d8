/**
 * Options that hold for a host rather than for one call: from the environment, or from the configuration file. What
 * stands in the command wins, then the environment, then the file.
 *
 *     repository = "/srv/backups"      NBDPULL_REPOSITORY=/srv/backups
 *     compress = "zstd"                NBDPULL_COMPRESS=zstd
 *     keep-daily = 14                  NBDPULL_KEEP_DAILY=14
 *
 * A key is the name of an option, and a table here says for which commands it counts.
 */
import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { type Command, InvalidArgumentError, type Option } from "commander";
import { UsageError } from "../src/backup/base/errors.js";

const CONFIG_FILE = "/etc/nbdpull.toml";

const BACKUPS = ["backup", "run"];
const GUESTS = ["backup", "doctor", "run"];
const POINTS = ["backup", "attach", "import", "run"];
const EVERY = undefined;

/** The commands that each key counts for; undefined: for all that have the option. */
const KEYS: Readonly<Record<string, readonly string[] | undefined>> = {
  ...Object.fromEntries(["strict", "quiet", "color"].map((key) => [key, EVERY])),
  ...Object.fromEntries(
    ["connect", "scratch", "scratch-reserve", "server", "encrypted", "freeze", "exclude"].map((key) => [
      key,
      GUESTS,
    ]),
  ),
  ...Object.fromEntries(
    ["format", "compress", "digests", "in-flight", "request-size", "limit-rate", "fsync", "prove-base"].map(
      (key) => [key, POINTS],
    ),
  ),
  ...Object.fromEntries(
    ["jobs", "connections", "reconnect", "host-override", "tls", "tls-ca", "tls-cert", "tls-key"].map(
      (key) => [key, BACKUPS],
    ),
  ),
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
};

/** What only the file has: which domains `nbdpull run` is about, and whether others may write to the repository. */
const FILE_ONLY: Readonly<Record<string, readonly string[]>> = {
  all: ["run"],
  domains: ["run"],
  skip: ["run"],
  "trust-repository": ["backup", "attach", "import", "prune", "repair", "run"],
};

/** Of the commands that take the repository as an option. */
const WITH_TO = ["backup", "attach", "import", "doctor", "run"];

export interface Settings {
  /** Undefined: only the command names it. */
  readonly repository: string | undefined;
  /** Of `nbdpull run`; empty: the command names them. */
  readonly domains: readonly string[];
}

let settings: Settings = { repository: undefined, domains: [] };

export function currentSettings(): Settings {
  return settings;
}

/**
 * Gives a command the values that it has no flag for.
 * @param argv of the process
 * @throws {UsageError} `E_CONFIG`: a key, a value or the file makes no sense; `E_USAGE`: a variable does
 * @throws {PreconditionError} `E_CONFIG_OTHERS`
 */
export async function applySettings(
  command: Command,
  argv: readonly string[],
  env: NodeJS.ProcessEnv,
): Promise<void> {
  const path = configPath(argv, env);
  const file = path === undefined ? {} : await valuesOf(path);
  const at = (key: string): string => `${path}: ${key}`;
  for (const [key, value] of Object.entries(file)) {
    if (key !== "repository" && key !== "domains") give(command, key, value, at(key), "config");
  }
  for (const key of Object.keys(KEYS)) {
    const name = variableOf(key);
    const value = env[name];
    if (value !== undefined && value !== "") give(command, key, value, name, "env");
  }
  const repository = env["NBDPULL_REPOSITORY"] || file["repository"];
  if (repository !== undefined && typeof repository !== "string")
    throw wrongValue(at("repository"), "give a path");
  if (repository !== undefined && WITH_TO.includes(command.name())) {
    command.setOptionValueWithSource("to", repository, "config");
  }
  settings = { repository, domains: domainsIn(file["domains"], at("domains")) };
}

/** Rules of what to keep that the command names replace all others: together they would keep more than it says. */
export function settleRetention(command: Command): void {
  const rules = ["keepLast", "keepDaily", "keepWeekly", "keepMonthly"];
  const isFrom = (rule: string, ...sources: string[]): boolean =>
    sources.includes(command.getOptionValueSource(rule) ?? "");
  if (!rules.some((rule) => isFrom(rule, "cli"))) return;
  for (const rule of rules) if (isFrom(rule, "config", "env")) command.setOptionValue(rule, undefined);
}

function configPath(argv: readonly string[], env: NodeJS.ProcessEnv): string | undefined {
  const at = argv.findIndex((word) => word === "--config" || word.startsWith("--config="));
  const word = argv[at];
  const named =
    word === undefined
      ? env["NBDPULL_CONFIG"] || undefined
      : word === "--config"
        ? argv[at + 1]
        : word.slice("--config=".length);
  if (named !== undefined) return resolve(named);
  return existsSync(CONFIG_FILE) ? CONFIG_FILE : undefined;
}

async function valuesOf(path: string): Promise<Readonly<Record<string, unknown>>> {
  // Most hosts have no such file.
  const { configError, readConfigFile } = await import("./config-file.js");
  const file = await readConfigFile(path);
  if (file === undefined) throw configError(path, "there is no such file");
  const known = ["repository", ...Object.keys(FILE_ONLY), ...Object.keys(KEYS)];
  for (const key of Object.keys(file)) {
    if (known.includes(key)) continue;
    const { didYouMean } = await import("./hints.js");
    throw configError(path, `there is no setting ${key}${didYouMean(key, known)}`);
  }
  return file;
}

function variableOf(key: string): string {
  return `NBDPULL_${key.toUpperCase().replaceAll("-", "_")}`;
}

/** Sets the option that the key names, if this command has it and it counts for it. */
function give(command: Command, key: string, value: unknown, where: string, source: "config" | "env"): void {
  const commands = KEYS[key] ?? FILE_ONLY[key];
  if (commands && !commands.includes(command.name())) return;
  const option = command.options.find(({ long }) => long === `--${key}`);
  const negated = command.options.find(({ long }) => long === `--no-${key}`);
  const name = (option ?? negated)?.attributeName();
  if (name === undefined) return;
  if (option && !option.isBoolean() && !(negated && isNo(value))) {
    command.setOptionValueWithSource(name, parsedBy(option, value, where), source);
    return;
  }
  if (!isNo(value) && !isYes(value)) throw wrongValue(where, "give true or false");
  if (isYes(value) || negated) command.setOptionValueWithSource(name, isYes(value), source);
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
  return new UsageError("E_CONFIG", `${where}: ${what}`);
}
