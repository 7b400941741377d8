import { readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { openKvmToLibvirt } from "../../bench/open-kvm.js";
import { findTool } from "./tools.js";

const TOOLS = ["virsh", "qemu-img", "qemu-system-x86_64"];

/**
 * Labs are named `nbdpull-lab-PID-RANDOM`, and domains restored from them have a suffix, so that remains of
 * dead processes can be told from labs in use.
 */
const LAB_NAME = /^nbdpull-lab-(\d+)-[0-9a-f]+(?:-[a-z]+\d*)?$/;

let obstacle: Promise<string | undefined> | undefined;

/**
 * Makes sure that the system's libvirt answers, starting its daemons if possible, and removes what labs of
 * dead processes left behind.
 * @returns undefined, or why there can be no lab
 */
export function ensureLibvirt(): Promise<string | undefined> {
  obstacle ??= findObstacle();
  return obstacle;
}

async function findObstacle(): Promise<string | undefined> {
  const missing = TOOLS.filter((tool) => findTool(tool) === undefined);
  if (missing.length > 0) return `not installed: ${missing.join(", ")}`;
  if (process.getuid?.() !== 0) return "a lab needs root";
  await openKvmToLibvirt();
  if (!(await startDaemons())) return "libvirtd does not answer, and could not be started";
  await removeDeadLabs();
  return undefined;
}

/** @returns whether libvirt answers */
async function startDaemons(): Promise<boolean> {
  if (await answers()) return true;
  // If two processes do this at once, the lock on the pid files ends one of each pair of daemons.
  for (const daemon of ["virtlogd", "libvirtd"]) {
    await execa(findTool(daemon) ?? daemon, ["-d"], { reject: false, timeout: 120_000 });
  }
  const deadline = Date.now() + 120_000;
  while (!(await answers())) {
    if (Date.now() > deadline) return false;
    await sleep(200);
  }
  return true;
}

/** Stops libvirtd, whose domains go on; disposing starts it again. */
export async function stopLibvirtd(): Promise<AsyncDisposable> {
  const pid = Number(await readFile("/run/libvirtd.pid", "utf8"));
  process.kill(pid, "SIGTERM");
  while (isAlive(pid)) await sleep(20);
  return {
    [Symbol.asyncDispose]: async () => {
      if (!(await startDaemons())) throw new Error("libvirtd does not come back");
    },
  };
}

async function answers(): Promise<boolean> {
  const result = await execa("virsh", ["-c", "qemu:///system", "version"], {
    reject: false,
    timeout: 120_000,
  });
  return !result.failed;
}

async function removeDeadLabs(): Promise<void> {
  const { stdout } = await execa("virsh", ["-c", "qemu:///system", "list", "--all", "--name"]);
  for (const line of stdout.split("\n")) {
    const pid = LAB_NAME.exec(line.trim())?.[1];
    if (pid !== undefined && !isAlive(Number(pid))) await removeLab(line.trim());
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && "code" in error && error.code === "EPERM";
  }
}

/** Where a lab keeps its files. */
export function labFolder(domain: string): string {
  return join(tmpdir(), domain);
}

/** Where libvirt's virtlogd writes QEMU's output. */
export function labLog(domain: string): string {
  return `/var/log/libvirt/qemu/${domain}.log`;
}

/** Removes a lab's domain, its checkpoints, its log and its folder, as far as they exist. */
export async function removeLab(domain: string): Promise<void> {
  const virsh = (...args: readonly string[]) =>
    execa("virsh", ["-c", "qemu:///system", ...args], { reject: false, timeout: 60_000 });
  await virsh("destroy", domain);
  await virsh(
    "undefine",
    "--checkpoints-metadata",
    "--snapshots-metadata",
    "--managed-save",
    "--nvram",
    domain,
  );
  await rm(labLog(domain), { force: true });
  await rm(labFolder(domain), { recursive: true, force: true });
}

const removals: Promise<void>[] = [];

/**
 * Removes something of a lab's while the tests go on: libvirt ends a domain only once the system has
 * forgotten QEMU's process, and where the first process of a container is slow to notice, that takes two
 * seconds.
 */
export function removeMeanwhile(remove: () => Promise<void>): void {
  const removed = remove();
  // Whoever waits for it gets the error.
  removed.catch(() => undefined);
  removals.push(removed);
}

/** Waits until everything is removed. */
export async function labsRemoved(): Promise<void> {
  await Promise.all(removals.splice(0));
}
