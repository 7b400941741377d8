/** The servers that disks are read from, each with the settings that people really use. */

import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { NbdClient, parseNbdUri } from "../src/nbd/index.js";
import { freePort } from "./free-ports.js";
import type { Image } from "./images.js";
import { BITMAP, type DirtyDisk, type Disk } from "./inputs.js";
import { demand, findProgram, PROGRAMS, type Program } from "./programs.js";
import type { Address, Scene, Source, Tls } from "./workload.js";

export interface ServeOptions {
  /** For sockets. */
  readonly folder: string;
  /** Default: a unix socket. */
  readonly over?: "unix" | "tcp";
  readonly tls?: Tls;
}

/** `qemu-nbd`, read-only, for any number of connections. */
export async function serveByQemuNbd(disk: Disk, options: ServeOptions): Promise<Scene> {
  const at = await freeAddress(options);
  const scene = await start(PROGRAMS.qemuNbd, at, [
    ...["--read-only", "--persistent", "--shared=0", `--format=${disk.image.format}`],
    ...(isDirty(disk) ? [`--bitmap=${BITMAP}`] : []),
    ...(at.kind === "unix" ? [`--socket=${at.socket}`] : [`--bind=${at.host}`, `--port=${at.port}`]),
    ...(options.tls === undefined ? [] : ["--object", serverCredentials(options.tls), "--tls-creds=tls0"]),
    disk.image.path,
  ]);
  return await afterLargeRead(scene, [sourceOf(disk, at, "", options.tls)]);
}

/** One `qemu-storage-daemon` with an export for each disk, as QEMU serves all disks of a domain. */
export async function serveByStorageDaemon(
  disks: ReadonlyMap<string, Disk>,
  options: ServeOptions,
): Promise<Scene> {
  const at = await freeAddress(options);
  const args = [
    "--nbd-server",
    at.kind === "unix"
      ? `addr.type=unix,addr.path=${at.socket},max-connections=0`
      : `addr.type=inet,addr.host=${at.host},addr.port=${at.port},max-connections=0`,
  ];
  for (const [name, { image }] of disks) {
    const file = `driver=file,filename=${image.path},node-name=${name}-file,read-only=on`;
    args.push("--blockdev", file);
    args.push("--blockdev", `driver=${image.format},file=${name}-file,node-name=${name},read-only=on`);
    args.push("--export", `type=nbd,id=${name},node-name=${name},name=${name}`);
  }
  const scene = await start(PROGRAMS.storageDaemon, at, args);
  const sources = Array.from(disks, ([name, disk]) => sourceOf(disk, at, name, undefined));
  return await afterLargeRead(scene, sources);
}

const LARGE_READ_BYTES = 8 * 1024 * 1024;

/**
 * A fresh QEMU takes three times the CPU time for requests of 1 MiB until somebody has made a larger one:
 * only then does glibc keep such memory instead of returning it to the kernel after each of them. So one is
 * made for everybody.
 */
async function afterLargeRead(scene: Omit<Scene, "sources">, sources: readonly Source[]): Promise<Scene> {
  try {
    const [first] = sources;
    if (first !== undefined) {
      await using client = await NbdClient.connect(parseNbdUri(first.uri));
      await client.read(0, Buffer.allocUnsafe(Math.min(LARGE_READ_BYTES, first.virtualSize)));
    }
    return { ...scene, sources };
  } catch (error) {
    await scene[Symbol.asyncDispose]();
    throw error;
  }
}

/** `nbdkit` with a raw image: `filters` come in front of it, `settings` are theirs. */
export async function serveByNbdkit(
  disk: Disk,
  options: ServeOptions & { readonly filters?: readonly string[]; readonly settings?: readonly string[] },
): Promise<Scene> {
  if (disk.image.format !== "raw") throw new Error("nbdkit's file plugin serves raw images");
  return await nbdkit(disk, { ...options, plugin: ["file", disk.image.path] });
}

/** `nbdkit` with a disk of zeroes that it does not own up to: each has to be sent, and found. */
export async function serveUnknownZeroes(disk: Disk, options: ServeOptions): Promise<Scene> {
  return await nbdkit(disk, {
    ...options,
    filters: ["noextents"],
    plugin: ["null", String(disk.virtualSize)],
  });
}

async function nbdkit(
  disk: Disk,
  options: ServeOptions & {
    readonly plugin: readonly string[];
    readonly filters?: readonly string[];
    readonly settings?: readonly string[];
  },
): Promise<Scene> {
  const at = await freeAddress(options);
  const scene = await start(PROGRAMS.nbdkit, at, [
    ...["--foreground", "--readonly", "--threads=64"],
    ...(at.kind === "unix" ? ["--unix", at.socket] : ["--ipaddr", at.host, "--port", String(at.port)]),
    ...(options.filters ?? []).map((filter) => `--filter=${filter}`),
    ...options.plugin,
    ...(options.settings ?? []),
  ]);
  return { ...scene, sources: [sourceOf(disk, at, "", undefined)] };
}

function isDirty(disk: Disk): disk is DirtyDisk {
  return "dirty" in disk;
}

function serverCredentials({ certificates }: Tls): string {
  return `tls-creds-x509,id=tls0,endpoint=server,verify-peer=yes,dir=${certificates}`;
}

function sourceOf(disk: Disk, at: Address, exportName: string, tls: Tls | undefined): Source {
  const expected: Image = isDirty(disk) ? disk.dirty : disk.image;
  return {
    ...withAddress({ at, exportName, ...(tls === undefined ? {} : { tls }) }),
    expected,
    virtualSize: disk.virtualSize,
    ...(isDirty(disk) ? { bitmap: BITMAP } : {}),
  };
}

/** The part of a source that says how it is reached. */
type Reach = Pick<Source, "at" | "exportName" | "tls">;

/** Adds the URI, in the words that both libnbd and nbdpull understand. */
export function withAddress<T extends Reach>(reach: T): T & { readonly uri: string } {
  const scheme = reach.tls === undefined ? "nbd" : "nbds";
  const path = encodeURIComponent(reach.exportName);
  const query = new URLSearchParams();
  if (reach.at.kind === "unix") query.set("socket", reach.at.socket);
  if (reach.tls !== undefined) query.set("tls-certificates", reach.tls.certificates);
  const parameters = query.size > 0 ? `?${decodeURIComponent(query.toString())}` : "";
  const uri =
    reach.at.kind === "unix"
      ? `${scheme}+unix:///${path}${parameters}`
      : `${scheme}://${reach.at.host}:${reach.at.port}/${path}${parameters}`;
  return { ...reach, uri };
}

let sockets = 0;

async function freeAddress({ over = "unix", folder }: ServeOptions): Promise<Address> {
  if (over === "tcp") return { kind: "tcp", host: "localhost", port: await freePort() };
  sockets += 1;
  return { kind: "unix", socket: join(folder, `${sockets}.sock`) };
}

const START_TIMEOUT_MS = 120_000;

/** Starts a server and waits until it listens; fails with what it has said where it ends before. */
async function start(
  program: Program,
  at: Address,
  args: readonly string[],
): Promise<Omit<Scene, "sources">> {
  await demand(program);
  const server = execa(findProgram(program.name) ?? program.name, args, { reject: false, stdin: "ignore" });
  const stop = async (): Promise<void> => {
    server.kill("SIGTERM");
    await server;
  };
  const deadline = Date.now() + START_TIMEOUT_MS;
  while (!(await listens(at))) {
    if (server.pid === undefined || server.exitCode !== null || Date.now() > deadline) {
      await stop();
      throw new Error(`${program.name} does not listen: ${(await server).stderr}`);
    }
    await sleep(10);
  }
  return { serverPid: server.pid ?? 0, [Symbol.asyncDispose]: stop };
}

function listens(at: Address): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = at.kind === "unix" ? connect(at.socket) : connect(at.port, at.host);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}
