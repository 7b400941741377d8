/**
 * Runs commands on another host through ssh, with the user's own keys and configuration. It never prompts:
 * anything that would need an answer fails.
 */
import { BackupError, PreconditionError } from "../base/errors.js";
import { oneLine } from "../base/one-line.js";
import { shellWord } from "../base/shell-word.js";
import { endWithHelpers } from "./helpers-of-process.js";

/** A shell script on the other host failed with its own exit code. */
export class ScriptError extends BackupError {
  readonly exitCode: number;
  readonly said: string;

  constructor(host: string, exitCode: number, said: string) {
    const reason = oneLine(said) || `exit code ${exitCode}`;
    super("E_SSH_COMMAND", `a command on ${host} failed: ${reason}`, { details: { host } });
    this.exitCode = exitCode;
    this.said = reason;
  }
}

/** ssh's own exit code for when it could not connect, or was disconnected. */
const SSH_FAILED = 255;
const SCRIPT_TIMEOUT_MS = 60_000;

/** Options of every call. `detached` keeps a Ctrl-C on the terminal from reaching ssh. */
export const SSH_PROCESS = { reject: false, detached: true, env: { LC_ALL: "C" } } as const;

export class Ssh {
  readonly target: SshTarget;
  readonly signal: AbortSignal | undefined;

  constructor(target: SshTarget, signal?: AbortSignal) {
    this.target = target;
    this.signal = signal;
  }

  /** The same host with another signal or none: clean-up must run even after the work was aborted. */
  withSignal(signal: AbortSignal | undefined): Ssh {
    return new Ssh(this.target, signal);
  }

  /**
   * Runs a POSIX shell script there, with `values` as its variables, and resolves with its output. The script
   * is passed on standard input, so that the user's login shell, whichever it is, doesn't interpret it. It is
   * one group of commands, so that half a script does nothing.
   *
   * @throws {PreconditionError} `E_SSH`, `E_NO_SSH`: the host can't be reached by ssh
   * @throws {ScriptError} the script failed
   */
  async run(script: string, values: Readonly<Record<string, string>>): Promise<string> {
    const { signal } = this;
    const { execa } = await import("execa");
    signal?.throwIfAborted();
    const variables = Object.entries(values).map(([name, value]) => `${name}=${quote(value)}`);
    const child = execa(...this.command([], "exec sh -s"), {
      ...SSH_PROCESS,
      input: ["{", "set -eu", ...variables, script, "} </dev/null", ""].join("\n"),
      timeout: SCRIPT_TIMEOUT_MS,
      ...(signal === undefined ? {} : { cancelSignal: signal }),
    });
    endWithHelpers(child);
    const result = await child;
    if (!result.failed) return result.stdout;
    signal?.throwIfAborted();
    const { exitCode, stderr } = result;
    // ssh has ended well, but a helper held its output until that was closed.
    if (exitCode === 0 && !result.timedOut) return result.stdout;
    if (result.timedOut) throw this.failure({ stderr: silent(SCRIPT_TIMEOUT_MS) });
    if (exitCode === undefined || exitCode === SSH_FAILED) throw this.failure(result);
    throw new ScriptError(this.target.host, exitCode, stderr);
  }

  /** The command line that runs `command` in the login shell there. */
  command(options: readonly string[], command: string): [program: string, args: readonly string[]] {
    const { host, port, user, keyFile, program = "ssh", settings } = this.target;
    const args = [
      ...(port === undefined ? [] : ["-p", String(port)]),
      ...(user === undefined ? [] : ["-l", user]),
      ...(keyFile === undefined ? [] : ["-i", keyFile]),
      ...[...settings, "BatchMode=yes", "ConnectTimeout=20"].flatMap((setting) => ["-o", setting]),
      ...["-T", "-e", "none", ...options, "--", host, command],
    ];
    return [program, args];
  }

  /** The error for a failure of ssh itself. */
  failure({ stderr, code, cause }: SshResult): PreconditionError {
    const { host, program = "ssh", user } = this.target;
    if (code === "ENOENT") {
      const message = `${program} isn't installed, and nbdpull needs it to reach ${host}. Install it (Debian: apt install openssh-client)`;
      return new PreconditionError("E_NO_SSH", message, { cause });
    }
    const reason = oneLine(stderr) || "it gave no reason";
    const login = user === undefined ? host : `${user}@${host}`;
    return new PreconditionError(
      "E_SSH",
      `${login} can't be reached by ssh (${reason}). It has to be possible without a question: \`ssh -o BatchMode=yes ${shellWord(login)} true\` shows it`,
      { cause, details: { host } },
    );
  }
}

interface SshResult {
  readonly stderr: string;
  readonly code?: string | undefined;
  readonly cause?: unknown;
}

/** The reason of a failure, where ssh itself gave none in that time. */
export function silent(ms: number): string {
  return `nothing came in ${ms / 1000} s`;
}

/** Quotes text as one word for a POSIX shell. */
export function quote(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** How libvirt's own ssh connects, so that ours reaches the same host in the same way. */
export interface SshTarget {
  readonly host: string;
  readonly port?: number | undefined;
  readonly user?: string | undefined;
  /** `keyfile`: the private key. */
  readonly keyFile?: string | undefined;
  /** `command`: the program to run instead of `ssh`. */
  readonly program?: string | undefined;
  /** Further options of OpenSSH, as `Name=value`. */
  readonly settings: readonly string[];
}
