import { mkdtemp, rm } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";

/** Runs `qemu-img` and returns its standard output; a failure rejects with its error output. */
export async function qemuImg(...args: readonly string[]): Promise<string> {
  for (let left = 5; ; left -= 1) {
    const ran = await execa("qemu-img", args, { reject: left === 0 || !args.join(" ").includes("luks") });
    if (!ran.failed) return ran.stdout;
    // It measures the processor for LUKS's rounds, and fails where that has no time for it just then.
    if (!/accurate CPU usage/.test(ran.stderr)) throw new Error(ran.stderr);
  }
}

/**
 * Runs `qemu-io` commands on an image, in order: `qemuIo(path, "qcow2", "write -P 0x11 0 1M")`. Rejects if a
 * command fails (a pattern mismatch, an offset outside the image).
 */
export async function qemuIo(
  image: string,
  format: "qcow2" | "raw",
  ...commands: readonly string[]
): Promise<string> {
  const args = commands.flatMap((command) => ["-c", command]);
  const { stdout } = await execa("qemu-io", ["-f", format, ...args, image]);
  // A pattern mismatch is reported on stdout, and older versions exit with 0.
  if (stdout.includes("Pattern verification failed")) throw new Error(stdout);
  return stdout;
}

export interface CreateImageOptions {
  readonly format?: "qcow2" | "raw";
  /** The size in bytes. */
  readonly size: number;
  /** Further `-o` options: `{ cluster_size: "64k", extended_l2: "on" }`. */
  readonly options?: Readonly<Record<string, string>>;
}

/** Creates an empty image (qcow2 unless told otherwise). */
export async function createImage(path: string, options: CreateImageOptions): Promise<void> {
  const settings = Object.entries(options.options ?? {}).flatMap(([key, value]) => ["-o", `${key}=${value}`]);
  await qemuImg("create", "-q", "-f", options.format ?? "qcow2", ...settings, path, String(options.size));
}

export interface QemuNbdOptions {
  readonly image: string;
  readonly format: "qcow2" | "raw";
  /** A persistent bitmap of the image, offered as the context `qemu:dirty-bitmap:NAME`. */
  readonly bitmap?: string;
  /** Defaults to the empty name. */
  readonly exportName?: string;
  /** Defaults to true. */
  readonly readOnly?: boolean;
  /** Further arguments: `["--allocation-depth"]`, or `["--tls-creds=…", "--object=…"]`. */
  readonly args?: readonly string[];
}

export interface QemuNbd extends AsyncDisposable {
  readonly socket: string;
  readonly uri: string;
  /** Ends the server and removes its socket; may be called more than once. */
  stop(): Promise<void>;
}

/**
 * Serves an image with qemu-nbd on its own Unix socket, to any number of connections; resolves when it
 * listens.
 */
export async function startQemuNbd(options: QemuNbdOptions): Promise<QemuNbd> {
  const folder = await mkdtemp(join(tmpdir(), "nbdpull-qemu-nbd-"));
  const socket = join(folder, "nbd.sock");
  const exportName = options.exportName ?? "";
  const server = execa(
    "qemu-nbd",
    [
      `--socket=${socket}`,
      `--format=${options.format}`,
      `--export-name=${exportName}`,
      "--persistent",
      "--shared=0",
      ...(options.readOnly === false ? [] : ["--read-only"]),
      ...(options.bitmap === undefined ? [] : [`--bitmap=${options.bitmap}`]),
      ...(options.args ?? []),
      options.image,
    ],
    { reject: false },
  );
  const stop = async (): Promise<void> => {
    server.kill("SIGTERM");
    await server;
    await rm(folder, { recursive: true, force: true });
  };
  const deadline = Date.now() + 120_000;
  while (!(await accepts(socket))) {
    if (server.exitCode !== null || Date.now() > deadline) {
      await stop();
      throw new Error(`qemu-nbd does not listen on ${socket}: ${(await server).stderr}`);
    }
    await sleep(10);
  }
  const uri = `nbd+unix:///${encodeURIComponent(exportName)}?socket=${encodeURIComponent(socket)}`;
  return { socket, uri, stop, [Symbol.asyncDispose]: stop };
}

/** Whether something listens on a Unix socket. */
function accepts(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}
