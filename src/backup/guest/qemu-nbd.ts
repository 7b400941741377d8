/** Runs qemu-nbd to serve the image of a disk whose domain is off. */
import { readdirSync, readFileSync } from "node:fs";
import { lstat, readFile, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { execa as Execa } from "execa";
import { ConnectionError, type NbdAddress, NbdClient } from "../../nbd/index.js";
import { BackupError } from "../base/errors.js";
import { toolProcess } from "../host/tool-process.js";
import { confined, type ToolUser } from "./confined-tool.js";
import { QEMU } from "./local-job-folder.js";
import { type BlockNode, inputFrom, refusedByTool } from "./qemu-img.js";

interface ServedImage {
  readonly image: {
    /** For messages. */
    readonly path: string;
    /** What is served, in the form of `asArgument`. */
    readonly node: string;
    readonly as: ToolUser | undefined;
    /** Becomes the server's standard input. */
    readonly fd?: number | undefined;
  };
  /** A bitmap of the image, offered as a dirty context. */
  readonly bitmap: string | undefined;
  /** Name of the export. */
  readonly name: string;
  /** Path of the Unix socket, in a folder that nobody else can enter. */
  readonly socket: string;
}

/** Time to open an image and its backing files, with a margin for slow disks. */
const START_MS = 60_000;
const END_MS = 5_000;
/** Time for a server that has hung up to exit and print its reason. */
const EXIT_MS = 2_000;
const POLL_MS = 10;
/** Connections that the server allows: those of a pull, and the one that `ImageServer` holds. */
const CLIENTS = 16;

/**
 * A read-only server on one image. While it runs, QEMU's locks keep other processes from writing to the
 * image, so its domain can't start. The server exits when its last client disconnects, so this object holds
 * one connection open. It also exits when this process does.
 */
export class ImageServer implements AsyncDisposable {
  readonly address: NbdAddress;
  readonly #server: Server;
  readonly #held: NbdClient;

  private constructor(address: NbdAddress, server: Server, held: NbdClient) {
    this.address = address;
    this.#server = server;
    this.#held = held;
  }

  /**
   * Resolves when the server accepts clients.
   * @throws {PreconditionError} qemu-nbd is not installed, or another process writes to the image
   * @throws {BackupError} qemu-nbd can't serve the image; the message has its output
   * @throws the signal's reason
   */
  static async start(served: ServedImage, signal: AbortSignal | undefined): Promise<ImageServer> {
    const { name: exportName, socket: path } = served;
    const address: NbdAddress = { transport: { kind: "unix", path }, exportName };
    const { execa } = await import("execa");
    const server = launch(execa, served);
    try {
      const held = await firstClient(address, server, signal);
      if (held) return new ImageServer(address, server, held);
      const { code, stderr } = await server;
      throw refusedByTool("qemu-nbd", served.image.path, { code, stderr });
    } catch (error) {
      await end(server);
      throw error;
    }
  }

  /** The node by which another tool reads what is served, if it runs in the folder of the socket. */
  get node(): BlockNode {
    const { transport, exportName } = this.address;
    const socket = transport.kind === "unix" ? transport.path : "";
    return { driver: "nbd", server: { type: "unix", path: fromItsFolder(socket) }, export: exportName };
  }

  /** @throws {BackupError} the server has exited, so the image may have been written to since */
  async assertAlive(signal: AbortSignal | undefined): Promise<void> {
    const gone = "the server of its image has ended before the backup has";
    if (this.#server.exitCode !== null || this.#server.signalCode !== null) {
      throw new BackupError("E_QEMU_NBD", `${this.address.exportName}: ${gone}: begin the backup again`);
    }
    await this.#held.read(0, Buffer.alloc(Math.min(512, this.#held.export.size)), signal ? { signal } : {});
  }

  async close(): Promise<void> {
    await this.#held.close();
    await end(this.#server);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/**
 * Ends our qemu-nbd processes whose sockets are below `folder`. A process that was killed just while
 * it started a server can leave one.
 * @throws {BackupError} a server doesn't exit
 */
export async function endServersIn(folder: string): Promise<void> {
  const began = performance.now();
  for (let asked = false; ; asked = true) {
    const left = await serversIn(folder);
    if (left.length === 0) return;
    const waited = performance.now() - began;
    if (waited > 2 * END_MS) {
      const message = `qemu-nbd (process ${left.join(", ")}) of a backup that was killed doesn't end: does its storage answer?`;
      throw new BackupError("E_QEMU_NBD", message, { details: { processes: left } });
    }
    if (!asked || waited > END_MS) for (const pid of left) kill(pid, asked ? "SIGKILL" : "SIGTERM");
    await sleep(POLL_MS);
  }
}

async function serversIn(folder: string): Promise<number[]> {
  const found: number[] = [];
  for (const name of readdirSync("/proc")) {
    if (/^\d+$/.test(name) && isCalledServer(name) && (await isServerIn(folder, name)))
      found.push(Number(name));
  }
  return found;
}

/**
 * Synchronous: a host has hundreds of processes, and the kernel tells their names without waiting for
 * anything. A command line it tells only once the process lets its memory be read, which one that is stuck
 * does not.
 */
function isCalledServer(pid: string): boolean {
  try {
    // A wrapper may have given it a name around its own.
    return readFileSync(`/proc/${pid}/comm`, "utf8").includes("qemu-nbd");
  } catch {
    // The process has exited.
    return false;
  }
}

async function isServerIn(folder: string, pid: string): Promise<boolean> {
  try {
    const words = (await readFile(`/proc/${pid}/cmdline`, "utf8")).split("\0");
    if (basename(words[0] ?? "") !== "qemu-nbd") return false;
    const { uid, gid } = await stat(`/proc/${pid}`);
    if (process.getuid?.() === 0 && gid === (await groupOf(folder))) return true;
    return uid === process.getuid?.() && words.some((word) => word.startsWith(`--socket=${folder}/`));
  } catch {
    // The process has exited, or it is hidden because it belongs to another user.
    return false;
  }
}

/**
 * The group of the folder for sockets, if it was lent to one (see `JobFolder`): only our servers are in that
 * group.
 */
async function groupOf(folder: string): Promise<number | undefined> {
  const { uid, gid } = await lstat(join(folder, QEMU));
  return uid === 0 && gid !== 0 ? gid : undefined;
}

function kill(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

type Server = ReturnType<typeof launch>;

/**
 * Starts the server so that the kernel ends it together with this process. qemu-nbd does not exit by itself
 * when a client disconnects during negotiation.
 */
function launch(execa: typeof Execa, served: ServedImage) {
  const { as, fd } = served.image;
  // Others of its group must be able to connect to its socket. The folder keeps everybody else out.
  const umask = as && process.umask(0o007);
  try {
    return execa(...confined("qemu-nbd", argumentsFor(served), as), {
      ...toolProcess(),
      cwd: dirname(served.socket),
      stdin: inputFrom(fd),
      stdout: "ignore",
      reject: false,
      // Keeps Ctrl-C on the terminal from reaching the server: this process has to disconnect first.
      detached: true,
    });
  } finally {
    if (umask !== undefined) process.umask(umask);
  }
}

/**
 * The socket's path for a tool that runs in its folder. The tool's user may be unable to pass through the
 * folders above, which are the caller's affair.
 */
function fromItsFolder(socket: string): string {
  return `/proc/self/cwd/${basename(socket)}`;
}

function argumentsFor({ image, bitmap, name, socket }: ServedImage): string[] {
  return [
    "--read-only",
    `--socket=${image.as ? fromItsFolder(socket) : socket}`,
    `--shared=${CLIENTS}`,
    `--export-name=${name}`,
    ...(bitmap === undefined ? [] : [`--bitmap=${bitmap}`]),
    image.node,
  ];
}

/**
 * Connects the first client. The server listens before it has opened the image, so an image that it can't
 * open shows as a lost connection.
 * @returns undefined if the server exited
 */
async function firstClient(
  address: NbdAddress,
  server: Server,
  signal: AbortSignal | undefined,
): Promise<NbdClient | undefined> {
  const deadline = performance.now() + START_MS;
  const options = { connections: 1, connectTimeoutMs: START_MS, ...(signal ? { signal } : {}) };
  for (;;) {
    signal?.throwIfAborted();
    try {
      return await NbdClient.connect(address, options);
    } catch (error) {
      signal?.throwIfAborted();
      const isThere = !(error instanceof ConnectionError && error.code === "NBD_CONNECT_FAILED");
      const pause = sleep(isThere ? EXIT_MS : POLL_MS, false, { ref: false });
      const hasEnded = await Promise.race([server.then(() => true), pause]);
      if (hasEnded) return undefined;
      if (isThere || performance.now() > deadline) throw error;
    }
  }
}

async function end(server: Server): Promise<void> {
  server.kill("SIGTERM");
  await server;
}
