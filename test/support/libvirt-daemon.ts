import { readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { findTool } from "./tools.js";

const TOOLS = ["virsh", "qemu-img", "qemu-system-x86_64"];

/**
 * Labs are named `nbdpull-lab-PID-RANDOM`, and domains that were restored from one have a suffix: what outlived its
 * process can be told from what is in use.
 */
const LAB_NAME = /^nbdpull-lab-(\d+)-[0-9a-f]+(?:-[a-z]+)?$/;

let obstacle: Promise<string | undefined> | undefined;

/**
 * Sees to it that the system's libvirt answers, starting its daemons where that is possible, and clears away what labs
 * of dead processes left behind.
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
  // Where two processes do this at once one of each pair ends by itself: they hold a lock on their pid files.
  for (const daemon of ["virtlogd", "libvirtd"]) {
    await execa(findTool(daemon) ?? daemon, ["-d"], { reject: false, timeout: 30_000 });
  }
  const deadline = Date.now() + 30_000;
  while (!(await answers())) {
    if (Date.now() > deadline) return false;
    await sleep(200);
  }
  return true;
}

/** Stops libvirtd, which its domains survive. It is started again when the result is disposed of. */
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

/**
 * Where no udev runs (a container, a bare virtual machine) `/dev/kvm` can be root's alone. libvirt then finds its
 * knowledge of QEMU outdated at every look, and asks QEMU anew each time: defining a domain takes a minute. So the
 * device gets the group and mode that Debian's udev rule gives it.
 */
async function openKvmToLibvirt(): Promise<void> {
  const run = (...command: readonly [string, ...string[]]) =>
    execa(command[0], command.slice(1), { reject: false });
  if ((await run("test", "-c", "/dev/kvm")).failed) return;
  if (!(await run("runuser", "-u", "libvirt-qemu", "--", "test", "-w", "/dev/kvm")).failed) return;
  await run("chgrp", "kvm", "/dev/kvm");
  await run("chmod", "0660", "/dev/kvm");
}

async function answers(): Promise<boolean> {
  const result = await execa("virsh", ["-c", "qemu:///system", "version"], {
    reject: false,
    timeout: 30_000,
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

/** Where libvirt's virtlogd writes what QEMU says. */
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
