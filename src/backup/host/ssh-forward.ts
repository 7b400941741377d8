/** Forwards a socket on this host to one on another host, through ssh. */
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { anySignal } from "../../nbd/index.js";
import { BackupError, PreconditionError } from "../base/errors.js";
import { oneLine } from "../base/one-line.js";
import { endWithHelpers, killGroup } from "./helpers-of-process.js";
import { LastWords } from "./last-words.js";
import { BOOT_ID } from "./process-identity.js";
import { quote, SSH_PROCESS, type Ssh, silent } from "./ssh.js";

type ForwardedEnd =
  | { readonly kind: "unix"; readonly path: string }
  | { readonly kind: "tcp"; readonly host: string; readonly port: number };

export interface ForwardOptions {
  readonly to: ForwardedEnd;
  /** Path of the socket on this host. Its folder must exist. */
  readonly socket: string;
  /**
   * A file on the other host in which the process that holds the connections there is noted, for {@link
   * sever}.
   */
  readonly note?: string | undefined;
}

/** The other side prints this once the session is open, and the socket with it. */
const READY = "nbdpull-ready";
/** For opening the session. ssh's own limit ends with the greetings of both sides. */
const OPEN_WITHIN_MS = 60_000;
/** How long a session without open connections may take to end. */
const GOODBYE_MS = 5000;
/** How long to wait, after a connection broke, until ssh has noticed and printed the reason. */
const NOTICE_MS = 500;

/** Characters that ssh gives a meaning in a path: tokens, variables, and the separators of its option. */
const NEVER_IN_A_PATH = /[%$:\\"\s]/;

/**
 * Opens the socket. Whether something listens at the other end, and whether the host allows the forwarding,
 * only shows when a client connects.
 *
 * The remote process ends at the end of its standard input, which comes when this process ends, for whatever
 * reason.
 *
 * @throws {PreconditionError} `E_SSH`, `E_NO_SSH`, or `E_SSH_PATH`: ssh can't forward to such a path
 */
export async function openForward(ssh: Ssh, { to, socket, note }: ForwardOptions): Promise<SshForward> {
  const { signal } = ssh;
  const end = to.kind === "tcp" ? `${bracketed(to.host)}:${to.port}` : forwardable(to.path);
  const settings = [
    ...["ExitOnForwardFailure=yes", "StreamLocalBindUnlink=yes", "StreamLocalBindMask=0177"],
    ...["ServerAliveInterval=10", "ServerAliveCountMax=3"],
    // Its own connection: one shared through the user's configuration would outlive it.
    ...["ControlMaster=no", "ControlPath=none"],
  ].flatMap((setting) => ["-o", setting]);
  // The parent is the sshd process that holds the connections. Its start time distinguishes it from a later
  // process with the same number.
  const noted =
    note === undefined
      ? ""
      : `echo $PPID $(cut -d " " -f 22 /proc/$PPID/stat) $(cat ${BOOT_ID}) > ${quote(note)} && `;
  // What is written to it comes back, by which `SshForward.answers` knows that both ends live.
  const script = `${noted}echo ${READY} && exec cat`;
  const { execa } = await import("execa");
  signal?.throwIfAborted();
  // An open session is not closed by a signal: it is closed when the NBD clients are.
  const opening = new AbortController();
  const giveUp = (): void => opening.abort(signal?.reason);
  signal?.addEventListener("abort", giveUp, { once: true });
  const late = setTimeout(
    () => opening.abort(ssh.failure({ stderr: silent(OPEN_WITHIN_MS) })),
    OPEN_WITHIN_MS,
  );
  const child = execa(
    ...ssh.command([...settings, "-L", `${forwardable(socket)}:${end}`], `exec sh -c ${quote(script)}`),
    {
      ...SSH_PROCESS,
      stdin: "pipe",
      buffer: false,
      cancelSignal: opening.signal,
    },
  );
  endWithHelpers(child);
  const said = new LastWords();
  child.stderr.setEncoding("utf8").on("data", (text: string) => said.add(text));
  child.stdin.on("error", () => undefined);
  const ended = child.then((result) => result);
  await new Promise<void>((resolve, reject) => {
    let out = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      out = (out + text).slice(-1000);
      if (out.includes(READY)) resolve();
    });
    ended.then(
      ({ code, cause }) =>
        reject(
          opening.signal.aborted ? opening.signal.reason : ssh.failure({ stderr: said.text, code, cause }),
        ),
      reject,
    );
  }).finally(() => {
    clearTimeout(late);
    signal?.removeEventListener("abort", giveUp);
  });
  return new SshForward(ssh.target.host, child, ended, said);
}

interface Session {
  readonly stdin: NodeJS.WritableStream;
  readonly stdout: NodeJS.ReadableStream;
  readonly pid?: number | undefined;
}

/** An open forwarding. The caller that opened it closes it, once no connection uses it. */
export class SshForward implements AsyncDisposable {
  /** Aborted when the connection is lost before `close` was called. */
  readonly lost: AbortSignal;
  readonly #host: string;
  readonly #child: Session;
  readonly #ended: Promise<unknown>;
  readonly #said: LastWords;
  #closed = false;

  constructor(host: string, child: Session, ended: Promise<unknown>, said: LastWords) {
    const lost = new AbortController();
    this.#host = host;
    this.#child = child;
    this.#said = said;
    this.lost = lost.signal;
    this.#ended = ended.then(
      () => {
        if (this.#closed) return;
        const reason = oneLine(said.text);
        const message = `the ssh connection to ${host}, through which the disks were read, was lost${reason && ` (${reason})`}: nothing was committed. Try again when the way there is sound`;
        lost.abort(new BackupError("E_SSH_LOST", message, { details: { host } }));
      },
      () => undefined,
    );
  }

  /**
   * Whether the other end gives back what it gets, which needs an ssh and an sshd that run: both may be
   * stopped, or their host, while every connection stays open.
   */
  async answers(withinMs: number, signal?: AbortSignal): Promise<boolean> {
    const { stdin, stdout } = this.#child;
    const inTime = anySignal(AbortSignal.timeout(withinMs), this.lost, signal);
    const answered = once(stdout, "data", { signal: inTime }).then(
      () => true,
      () => false,
    );
    stdin.write("\n");
    return await answered;
  }

  /** Ends it without farewell, and its helpers: it does not answer. */
  async kill(): Promise<void> {
    killGroup(this.#child);
    await this.#ended;
  }

  /** The reason why a forwarded connection failed, if ssh has reported one; otherwise the error itself. */
  async explain(error: unknown): Promise<unknown> {
    await Promise.race([this.#ended, sleep(NOTICE_MS)]);
    if (this.lost.aborted) return this.lost.reason;
    const refused = /open failed: .*/.exec(this.#said.text)?.[0];
    if (refused === undefined) return error;
    const message = `ssh to ${this.#host} works, but not to the job's socket or port there (${refused}): sshd_config there has to allow it (AllowStreamLocalForwarding, AllowTcpForwarding); or let QEMU serve by \`--server tcp:ADDRESS:PORT\``;
    return new PreconditionError("E_SSH_FORWARD", message, { cause: error, details: { host: this.#host } });
  }

  /** Resolves when the other side has closed its end of every connection. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#child.stdin.end();
    const timeout = new AbortController();
    const late = sleep(GOODBYE_MS, undefined, { signal: timeout.signal }).then(
      () => killGroup(this.#child),
      () => undefined,
    );
    await Promise.race([this.#ended, late]);
    timeout.abort();
    await this.#ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/**
 * The process on the other host that a note of {@link openForward} names: its number, its start and the boot
 * of that host. Undefined if it has ended, or if there is no note.
 * @throws as `Ssh.run` does
 */
export async function livingLine(ssh: Ssh, note: string): Promise<string | undefined> {
  return (await ssh.run(LINE, { note })) || undefined;
}

/**
 * Ends the process on the other host that a note of {@link openForward} names, if it still runs, and removes
 * the note. A host that was cut off may keep connections for hours, and QEMU 7.2 can hang if a job is ended
 * meanwhile. The host may come to it late, when this process has long given it up: a line that was opened
 * after it was called is left alone.
 *
 * @param known the line that is meant, as {@link livingLine} gave it; default: the present one
 */
export async function sever(ssh: Ssh, note: string, known?: string): Promise<void> {
  const line = known ?? (await livingLine(ssh, note));
  if (line !== undefined) await ssh.run(SEVER, { note, line });
}

const NOTED = `
[ -f "$note" ] || exit 0
read -r pid start boot < "$note" || boot=
# Nothing of one that has ended and that its parent has not collected.
begun() { sed -n 's/.*) \\([^ZX]\\) /\\1 /p' "/proc/$pid/stat" 2>/dev/null | cut -d " " -f 20; }
lives() { [ "$boot" = "$(cat ${BOOT_ID})" ] && [ "$(begun)" = "$start" ]; }`;

const LINE = `${NOTED}
if lives; then echo "$pid $start $boot"; fi`;

const SEVER = `${NOTED}
[ "$pid $start $boot" = "$line" ] || exit 0
if lives; then
  kill "$pid" || true
  for turn in 1 2 3 4 5 6 7 8 9 10; do
    [ "$(begun)" = "$start" ] || break
    [ "$turn" -lt 8 ] || kill -9 "$pid" || true
    sleep 0.2
  done
fi
if lives; then echo "process $pid does not end" >&2; exit 1; fi
# Whoever has given this up may have opened another one.
[ "$(cat "$note" 2>/dev/null)" != "$line" ] || rm -f "$note"`;

function bracketed(host: string): string {
  return host.includes(":") ? `[${host}]` : host;
}

function forwardable(path: string): string {
  if (path.startsWith("/") && !NEVER_IN_A_PATH.test(path)) return path;
  const message = `ssh can't forward to a socket at "${path}": it takes absolute paths without blanks and the characters % $ : \\ ". Name another folder with --scratch, or let QEMU serve by TCP`;
  throw new PreconditionError("E_SSH_PATH", message, { details: { path } });
}
