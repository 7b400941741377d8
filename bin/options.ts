import { type Command, InvalidArgumentError, Option } from "commander";
import { UsageError } from "../src/backup/base/errors.js";
import {
  DEFAULT_DIGESTS,
  DIGEST_ALGORITHMS,
  type DigestAlgorithm,
  parseDigestAlgorithm,
} from "../src/backup/digest/algorithms.js";
import { ENCRYPTED_POLICIES } from "../src/backup/guest/encrypted-disks.js";
import type { ImageFormat } from "../src/backup/image/image.js";
import type { CompressionMethod } from "../src/backup/qcow2/can-compress.js";
import type { ProveSettings } from "../src/backup/take/prove-disk.js";
import { type LimitOptions, MOST_SECONDS, wholeNumber, withLimits } from "./network-limits.js";
import { grouped } from "./option-groups.js";
import { parseSize } from "./sizes.js";
import type { ColourChoice } from "./terminal.js";
import { parseDuration } from "./times.js";

/** Options of every command. */
export interface TalkOptions {
  readonly json?: true;
  readonly quiet?: true;
  readonly verbose?: true;
  readonly strict?: true;
  readonly color?: ColourChoice;
}

/** Options of every command that speaks to an NBD server. */
export interface NetworkOptions extends LimitOptions {
  readonly connections?: number;
  readonly hostOverride?: string;
  readonly tlsCa?: string;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly tlsPskFile?: string;
  readonly insecure?: true;
}

/** Options of every command that reads exports for a long time. */
export interface ReconnectOptions {
  readonly reconnect?: number;
}

/** Options of every command that writes images. */
export interface CopyOptions {
  readonly format?: ImageFormat;
  readonly compress?: CompressionMethod;
  readonly digests?: DigestAlgorithm | false;
  readonly fsync: boolean;
  readonly inFlight?: number;
  readonly requestSize?: number;
  readonly limitRate?: number;
}

/** Options of every command that may take increments. */
export interface ProofOptions {
  readonly proveBase?: ProveSettings["amount"];
  readonly proveSeed?: string;
}

/** Options of every command whose job has scratch files. */
export interface ScratchOptions {
  readonly scratchReserve?: number;
}

/** Options of every command that writes to a repository, or defines what is in it. */
export interface TrustOptions {
  readonly trustRepository?: true;
}

/** Options of every command that adds points to a repository. */
export interface CreateOptions {
  readonly create?: true;
}

/** Headings that have options of several kinds of commands. */
export const DISKS_GROUP = "Which disks";
export const LEVELS_GROUP = "Levels and bases";
export const SCRATCH_GROUP = "The job's folder and scratch space";

/** Of commands that take the repository as an argument. */
export const REPO = "the repository; left out where NBDPULL_REPOSITORY or the configuration file names it";

/** For options that may be given several times. */
export function collect(value: string, before: readonly string[] = []): readonly string[] {
  return [...before, value];
}

/** The end of a command's help. */
export function examples(...commands: readonly string[]): string {
  return `\n${commands.length === 1 ? "Example" : "Examples"}:\n${commands.map((command) => `  ${command}`).join("\n")}`;
}

export function withTalk(command: Command): Command {
  return grouped(command, "Every command", () =>
    command
      .option("--json", "print one JSON document on stdout at the end, errors included")
      .option("--quiet", "no progress and no notes on stderr")
      .option("--verbose", "stack traces and causes of errors")
      .option("--strict", "exit 5 when there were warnings")
      .option("--config <file>", "settings, instead of /etc/nbdpull.toml")
      .addOption(
        new Option(
          "--color <when>",
          "colours: auto (on a terminal, unless NO_COLOR is set), always or never",
        ).choices(["auto", "always", "never"]),
      ),
  );
}

export function withNetwork(command: Command): Command {
  return grouped(command, "Reaching a server", () =>
    withLimits(command)
      .option(
        "--connections <n>",
        "NBD connections an export, where the server allows several (default 2, with TLS 1, up to 4 where it is far)",
        positive,
      )
      .option(
        "--host-override <name>",
        "connect to this host; certificates are still checked against the URI's",
      )
      .option("--tls-ca <file>", "trust only this CA; nbds:// or the job's tls='yes' make TLS required")
      .option("--tls-cert <file>", "client certificate")
      .option("--tls-key <file>", "its key")
      .option("--tls-psk-file <file>", "pre-shared key instead of certificates: USERNAME:HEXKEY lines")
      .option("--insecure", "encrypt, but take any certificate: to whom is unknown"),
  );
}

export function withReconnect(command: Command): Command {
  return grouped(command, "Reaching a server", () =>
    command.option(
      "--reconnect <seconds>",
      `how long a lost connection may be away (default ${RECONNECT_SECONDS}; 0: a loss is a failure)`,
      wholeNumber(0, MOST_SECONDS),
    ),
  );
}

export function withCopy(command: Command): Command {
  return grouped(command, "The image", () =>
    command
      .addOption(
        new Option("--format <format>", "image format; wins over the suffix").choices(["qcow2", "raw"]),
      )
      .addOption(
        new Option("--compress [method]", "compress a qcow2 image, by deflate (default) or zstd").choices(
          COMPRESSION_METHODS,
        ),
      )
      .option("--no-fsync", "do not flush to stable storage: faster, and lost at a power cut")
      .option(
        "--in-flight <bytes>",
        "bytes under way at once (default 4M, up to 64M where the server is far; at most 1G)",
        upTo(MAX_IN_FLIGHT),
      )
      .option(
        "--request-size <bytes>",
        "largest request, though never less than a cluster (default 512K, or 1M after one of 8M; at most 64M)",
        upTo(MAX_REQUEST),
      )
      .option("--limit-rate <bytes/s>", "read no faster than this, all disks together", size),
  );
}

export function withScratchReserve(command: Command): Command {
  return grouped(command, SCRATCH_GROUP, () =>
    command.option(
      "--scratch-reserve <bytes>",
      "give the backup up when less is left for scratch files (default a tenth of the room, at most 4G; 0: only warn)",
      (text) => (text === "0" ? 0 : size(text)),
    ),
  );
}

export function withEncrypted(command: Command): Command {
  return grouped(command, DISKS_GROUP, () =>
    command.addOption(
      new Option(
        "--encrypted <policy>",
        "disks that are encrypted on the host, and would be plain text in the point: stored with a warning, refused, or stored",
      )
        .choices([...ENCRYPTED_POLICIES])
        .default("warn"),
    ),
  );
}

export function withProof(command: Command): Command {
  return grouped(command, "The proof of a base", () =>
    command
      .option(
        "--prove-base <n>",
        "before an increment, compare so many clean clusters of each disk with its base, or all, or none (default 64)",
        proofAmount,
      )
      .option(
        "--prove-seed <seed>",
        "choose the clusters that an earlier backup chose by this seed",
        proofSeed,
      ),
  );
}

function proofAmount(text: string): ProveSettings["amount"] {
  return text === "all" || text === "none" ? text : positive(text);
}

function proofSeed(text: string): string {
  if (/^[0-9a-f]{16}$/.test(text)) return text;
  throw new InvalidArgumentError("a seed has 16 hexadecimal digits, as a backup tells it.");
}

export function withDigests(command: Command, otherwise: string): Command {
  return grouped(command, "The image", () =>
    command
      .option(
        "--digests [algorithm]",
        `digests of every cluster: sha256, or xxh64, which finds damage but no forgery (${otherwise})`,
        digestAlgorithm,
      )
      .option("--no-digests", "store no digests"),
  );
}

/** For commands that write to a repository as root, or let it decide what runs on this host. */
export function withTrust(command: Command): Command {
  return command.option(
    "--trust-repository",
    "as root too, use a repository that belongs to others or that they can write to",
  );
}

/** For commands that add points. */
export function withCreate(command: Command): Command {
  return command.option("--create", "make the repository if there is none, as nbdpull init does");
}

/**
 * `--digests`, `--compress`, `--define` and `--freeze` may have no value. Commander would then take the next
 * argument for it, even the URI, so the defaults are inserted here first. The next word is a value where it
 * can be nothing else; a name for `--define` has to be given as `--define=NAME`.
 */
export function fillInDefaults(argv: readonly string[]): string[] {
  return argv.map((arg, i) => {
    const next = argv[i + 1] ?? "";
    switch (arg) {
      case "--digests":
        return Object.hasOwn(DIGEST_ALGORITHMS, next) ? arg : `${arg}=${DEFAULT_DIGESTS}`;
      case "--compress":
        return COMPRESSION_METHODS.includes(next) ? arg : `${arg}=deflate`;
      case "--freeze":
        // Mountpoints begin with a slash, which no domain's name can have.
        return next === "auto" || next === "no" || next.startsWith("/") ? arg : `${arg}=`;
      case "--define":
        return `${arg}=`;
      default:
        return arg;
    }
  });
}

/**
 * What to say of a word after `--define` that was taken for an argument.
 * @returns a sentence in brackets; empty: there is none
 */
export function defineHint(argv: readonly string[], args: readonly string[]): string {
  const word = argv[argv.indexOf("--define") + 1];
  if (!argv.includes("--define") || word === undefined || !args.includes(word)) return "";
  return `(A name for --define is given as --define=${word})`;
}

const COMPRESSION_METHODS = ["deflate", "zstd"];

/** How long a lost connection is waited for, unless the user says otherwise. */
export const RECONNECT_SECONDS = 60;
const MAX_IN_FLIGHT = 1024 ** 3;
const MAX_REQUEST = 64 * 1024 ** 2;

export function positive(text: string): number {
  const number = Number(text);
  if (!Number.isInteger(number) || number < 1 || number > 64)
    throw new InvalidArgumentError("give a number from 1 to 64");
  return number;
}

/** A size within reasonable limits: compressed and restored images wait in buffers. */
function upTo(most: number): (text: string) => number {
  return (text) => {
    const bytes = size(text);
    if (bytes > most) throw new InvalidArgumentError(`at most ${most} bytes`);
    return bytes;
  };
}

export function size(text: string): number {
  return argument(() => parseSize(text));
}

/** A span of time, in seconds. */
export function span(text: string): number {
  return argument(() => parseDuration(text));
}

function digestAlgorithm(text: string): DigestAlgorithm {
  return argument(() => parseDigestAlgorithm(text));
}

function argument<T>(parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    if (error instanceof UsageError) throw new InvalidArgumentError(error.message);
    throw error;
  }
}
