/** One disk as a file, by libnbd's nbdfuse. */
import { execa } from "execa";
import { BackupError, PreconditionError } from "../base/errors.js";
import { toolProcess } from "../host/tool-process.js";
import { asOurs } from "./fuse-mounts.js";
import { FuseProcess } from "./fuse-process.js";

/** Time to connect and mount, with a margin for a busy machine. */
const START_MS = 30_000;

interface FuseFile {
  /** An empty file, which the disk covers; a path without links. */
  readonly path: string;
  readonly uri: string;
  readonly point: string;
}

/** A file that is mounted. `ended` rejects with `E_NBDFUSE`. */
export class NbdFuse extends FuseProcess {
  private constructor({ path, uri, point }: FuseFile) {
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
      ...toolProcess(),
    });
    super(path, child, {
      startMs: START_MS,
      pollMs: 10,
      // It takes its mount away by itself.
      endMs: 5_000,
      kill: () => child.kill("SIGKILL"),
      failure: (why) => failure(path, why),
      tooLate: `nothing is mounted there after ${START_MS / 1000} seconds`,
      // Whoever ends all that run in a terminal, or in a unit, ends nbdfuse as well.
      isEndedByOthers: (said) => /terminated by signal (?:1|2|15)\b/.test(said),
    });
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
      await fuse.mounted(signal);
      return fuse;
    } catch (error) {
      await fuse.close();
      throw error;
    }
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
