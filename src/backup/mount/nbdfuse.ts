/** One disk as a file, by libnbd's nbdfuse. */
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { BackupError, PreconditionError } from "../base/errors.js";
import { LastWords } from "../host/last-words.js";
import { asOurs, isMounted, unmount } from "./fuse-mounts.js";

/** Time to connect and mount, with a margin for a busy machine. */
const START_MS = 30_000;
const POLL_MS = 10;
/** After SIGTERM nbdfuse takes its mount away by itself. */
const END_MS = 5_000;

interface FuseFile {
  /** An empty file, which the disk covers; a path without links. */
  readonly path: string;
  readonly uri: string;
  readonly point: string;
}

/** A file that is mounted, until it is unmounted by anybody. */
export class NbdFuse implements AsyncDisposable {
  readonly path: string;
  /**
   * Settles when nbdfuse has ended and its mount is gone. Rejects with `E_NBDFUSE` if nobody asked for that.
   */
  readonly ended: Promise<void>;
  readonly #child: { readonly kill: (signal: "SIGTERM" | "SIGKILL") => boolean };
  readonly #said = new LastWords();
  #isClosing = false;
  #hasEnded = false;

  private constructor({ path, uri, point }: FuseFile) {
    this.path = path;
    // The kernel ends it together with this process, even where that is killed.
    const wrapped = ["--pdeathsig", "TERM", "nbdfuse"];
    // What is served never changes, so the kernel may keep it.
    const options = [
      "--readonly",
      "-o",
      "ro",
      "-o",
      "kernel_cache",
      ...asOurs(point).flatMap((option) => ["-o", option]),
    ];
    const child = execa("setpriv", [...wrapped, ...options, path, uri], {
      reject: false,
      stdin: "ignore",
      stdout: "ignore",
      buffer: false,
      env: { LC_ALL: "C" },
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => this.#said.add(text));
    this.#child = child;
    this.ended = child.then(async (result) => await this.#end(result));
    this.ended.catch(() => undefined);
  }

  /**
   * Resolves when the file can be read.
   * @throws {PreconditionError} `E_NO_FUSE`: nbdfuse is not installed
   * @throws {BackupError} `E_NBDFUSE`: it can't mount there; the message has its reason
   * @throws the signal's reason
   */
  static async mount(file: FuseFile, signal: AbortSignal | undefined): Promise<NbdFuse> {
    signal?.throwIfAborted();
    const fuse = new NbdFuse(file);
    try {
      const began = performance.now();
      while (!(await isMounted(file.path))) {
        if (fuse.#hasEnded) await fuse.ended;
        signal?.throwIfAborted();
        if (performance.now() - began > START_MS) {
          throw failure(file.path, `nothing is mounted there after ${START_MS / 1000} seconds`);
        }
        await sleep(POLL_MS);
      }
      return fuse;
    } catch (error) {
      await fuse.close();
      throw error;
    }
  }

  /** Takes the mount away, also from those who read it just now. */
  async close(): Promise<void> {
    this.#isClosing = true;
    this.#child.kill("SIGTERM");
    const kill = setTimeout(() => this.#child.kill("SIGKILL"), END_MS);
    await this.ended.catch(() => undefined);
    clearTimeout(kill);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #end({ exitCode, signal }: { exitCode?: number; signal?: string }): Promise<void> {
    this.#hasEnded = true;
    // Of an nbdfuse that was killed the kernel keeps the mount, and every access to it fails.
    const isLeft = await isMounted(this.path);
    if (isLeft) await unmount(this.path, { lazily: true });
    if (this.#isClosing || (exitCode === 0 && !isLeft)) return;
    // Whoever ends all that run in a terminal, or in a unit, ends nbdfuse as well.
    if (/terminated by signal (?:1|2|15)\b/.test(this.#said.text)) return;
    const how = signal === undefined ? `exit code ${exitCode}` : `a signal, ${signal}`;
    throw failure(this.path, this.#said.text.trim() || how);
  }
}

function failure(path: string, why: string): BackupError {
  if (/nbdfuse: No such file|failed to execute nbdfuse/.test(why)) {
    const message =
      "nbdfuse isn't installed, which shows a disk as a file: apt install libnbd-bin (or nbdfuse)";
    return new PreconditionError("E_NO_FUSE", message);
  }
  const details = { path };
  if (/Operation not permitted|fusermount3?: /.test(why)) {
    const message = `${path} can't be mounted: ${why}; a container needs --device /dev/fuse --cap-add SYS_ADMIN, a user the package fuse3`;
    return new PreconditionError("E_NO_FUSE", message, { details });
  }
  return new BackupError("E_NBDFUSE", `nbdfuse has ended at ${path}: ${why}`, { details });
}
