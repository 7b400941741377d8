/** The programs that `fetch-newer-suite.sh` fetched: QEMU 10, nbdkit 1.42 and libnbd 1.22. */

import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { type Folder, listensOn, type ServerOnSocket, startServer, uriOf } from "../nbd/servers.js";
import { describeUnless } from "./tools.js";

const SUITE = join(process.env["XDG_CACHE_HOME"] || join(homedir(), ".cache"), "nbd-client-ts", "trixie");

export type NewerProgram =
  | "nbdcopy"
  | "nbdinfo"
  | "nbdkit"
  | "qemu-img"
  | "qemu-io"
  | "qemu-nbd"
  | "qemu-storage-daemon";

/** The full path of a program of the newer suite. */
export function newer(program: NewerProgram): string {
  return join(SUITE, "bin", program);
}

/**
 * `describe` for tests of the newer programs: without them they are skipped by name, or fail with `CI=true`.
 */
export function describeWithNewerSuite(title: string, body: () => void): void {
  // The suite is installed atomically, including this file.
  const isThere = existsSync(join(SUITE, "made-for"));
  describeUnless(isThere ? undefined : "not fetched: run test/support/fetch-newer-suite.sh", title, body);
}

/** The output of a newer program; a failure rejects with its error output. */
export async function outputOfNewer(program: NewerProgram, ...args: readonly string[]): Promise<string> {
  return (await execa(newer(program), args, { timeout: 30_000 })).stdout;
}

/** An extent as `nbdinfo` reports it; `type` holds the context's flags. */
export interface MapLine {
  readonly offset: number;
  readonly length: number;
  readonly type: number;
}

/** A meta context as the newer nbdinfo reports it. */
export async function newerMap(uri: string, context = "base:allocation"): Promise<MapLine[]> {
  const lines = JSON.parse(await outputOfNewer("nbdinfo", "--json", `--map=${context}`, uri)) as MapLine[];
  return lines.map(({ offset, length, type }) => ({ offset, length, type }));
}

/** Starts the newer qemu-nbd on a Unix socket, for any number of clients. */
export function startNewerQemu(folder: Folder, ...args: readonly string[]): Promise<ServerOnSocket> {
  return startOnSocket(folder, "qemu-nbd", (socket) => ["-k", socket, "-t", "--shared=0", ...args]);
}

/**
 * Starts the newer nbdkit on a Unix socket with a plugin of its own suite; `args` are options and plugin
 * parameters.
 */
export function startNewerNbdkit(
  folder: Folder,
  plugin: string,
  ...args: readonly string[]
): Promise<ServerOnSocket> {
  // nbdkit would search the system's folders for a plugin given by name only.
  const path = join(SUITE, "lib", "nbdkit", "plugins", `nbdkit-${plugin}-plugin.so`);
  return startOnSocket(folder, "nbdkit", (socket) => ["-f", "-U", socket, path, ...args]);
}

async function startOnSocket(
  folder: Folder,
  program: NewerProgram,
  argsFor: (socket: string) => readonly string[],
): Promise<ServerOnSocket> {
  const socket = join(folder.path, `${program}-${Math.random()}.sock`);
  const server = await startServer(newer(program), argsFor(socket), () => listensOn(socket));
  return { ...server, socket, uri: uriOf(socket) };
}
