/** An object store for tests and workloads: Ceph, of one node, in memory, on loopback. */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp } from "node:fs/promises";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { freePorts } from "./free-ports.js";
import { PROJECT } from "./paths.js";

/** The store's own user, and another one whose buckets are not ours. */
export const MINE = { accessKeyId: "AKIDTEST", secretAccessKey: "secretsecretsecret" };
export const OTHER = { accessKeyId: "AKIDOTHER", secretAccessKey: "othersecretsecret" };

export interface Ceph {
  readonly endpoint: string;
  /** Resolves when nothing of it is left. */
  readonly end: () => Promise<void>;
}

/**
 * Starts one that ends with this process, even where that is killed. It keeps no process from ending. One that
 * does not come up, as on a machine that is short of memory, is begun again.
 */
export async function startCeph(): Promise<Ceph> {
  for (let left = 2; ; left -= 1) {
    const ceph = await startOnce();
    if (ceph) return ceph;
    if (left === 0) throw new Error("Ceph does not start; what it says is above");
  }
}

/** @returns undefined if it does not come up; nothing of it is left then */
async function startOnce(): Promise<Ceph | undefined> {
  const folder = await mkdtemp(join(tmpdir(), "nbdpull-store-"));
  const [port, monitor] = await freePorts();
  const script = join(PROJECT, "test", "support", "start-store.sh");
  // In a session of its own, out of the reach of Ctrl-C.
  const child = spawn("bash", [script, folder, `${port}`, `${monitor}`, "guarded"], {
    detached: true,
    stdio: ["pipe", "pipe", "inherit"],
  });
  const ended = once(child, "close");
  if (!(await saysReady(child.stdout))) {
    await ended;
    return undefined;
  }
  const handles = [child, child.stdin as Socket, child.stdout as Socket];
  for (const handle of handles) handle.unref();
  const end = async (): Promise<void> => {
    for (const handle of handles) handle.ref();
    child.stdin.end();
    await ended;
  };
  return { endpoint: `http://127.0.0.1:${port}`, end };
}

async function saysReady(output: Readable): Promise<boolean> {
  for await (const line of createInterface(output)) if (line === "ready") return true;
  return false;
}
