import { fdatasync, fstatSync, type Stats, write } from "node:fs";
import { BackupError, UsageError } from "../src/backup/base/errors.js";

const STDOUT = 1;
/** A pipe whose reader has gone away, and a socket. */
const GONE = new Set(["EPIPE", "ECONNRESET"]);

/** Whether a write to stdout or stderr failed because nobody reads it any longer. */
export function isReaderGone(error: unknown): boolean {
  return GONE.has((error as NodeJS.ErrnoException).code ?? "");
}

/** Large data on standard output, whatever it is: a pipe, a file, a device. */
export class StandardOutput {
  #found: Stats | undefined;

  /**
   * Resolves when the operating system has taken the bytes, which must not change until then. A full pipe
   * keeps only this promise waiting, not the thread.
   * @throws the system's error; see {@link isReaderGone}
   */
  async write(bytes: Uint8Array): Promise<void> {
    // Node writes pipes and sockets without blocking, but files on the main thread, and block devices not at
    // all.
    const { stat } = this;
    if (stat.isFIFO() || stat.isSocket() || process.stdout.isTTY) {
      return await settled((done) => process.stdout.write(bytes, done));
    }
    for (let at = 0; at < bytes.length; ) {
      at += await settled<number>((done) => write(STDOUT, bytes, at, bytes.length - at, null, done));
    }
  }

  /** Brings a file or block device to stable storage; does nothing for anything else. */
  async sync(): Promise<void> {
    const { stat } = this;
    if (stat.isFile() || stat.isBlockDevice()) await settled((done) => fdatasync(STDOUT, done));
  }

  get stat(): Stats {
    this.#found ??= fstatSync(STDOUT);
    return this.#found;
  }
}

let isAbandoned = false;

/**
 * Ends the process if a disk on standard output was abandoned: what a full pipe has not taken would keep it
 * alive, and Node can't close its standard output. Call it when all other work is finished.
 */
export function endIfAbandoned(): void {
  if (isAbandoned) process.stderr.write("", () => process.exit());
}

/** A disk on standard output. */
export class DiskOnStdout {
  readonly #stdout = new StandardOutput();

  /** @throws {UsageError} standard output is a terminal */
  constructor() {
    if (!process.stdout.isTTY) return;
    const message = "the disk would be printed on the terminal: send standard output to a program or a file";
    throw new UsageError("E_STDOUT", message);
  }

  /** @throws {BackupError} `E_STDOUT_CLOSED`: nobody reads it any longer */
  async write(bytes: Uint8Array): Promise<void> {
    try {
      await this.#stdout.write(bytes);
    } catch (cause) {
      if (!isReaderGone(cause)) throw cause;
      const message = "the program that reads standard output closed it before it had the whole disk";
      throw new BackupError("E_STDOUT_CLOSED", message, { cause });
    }
  }

  async sync(): Promise<void> {
    await this.#stdout.sync();
  }

  /** Gives up what was not taken yet. */
  abandon(): void {
    isAbandoned = true;
  }
}

function settled<T = void>(
  start: (done: (error: Error | null | undefined, result: T) => void) => void,
): Promise<T> {
  return new Promise((resolve, reject) => {
    start((error, result) => {
      if (error) reject(error);
      else resolve(result);
    });
  });
}
