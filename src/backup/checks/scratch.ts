/** Checks the folder in which QEMU makes its socket and scratch files. */

import { writeFile } from "node:fs/promises";
import { resolve } from "node:path";
import prettyBytes from "pretty-bytes";
import { BackupError, messageOf } from "../base/errors.js";
import { shellWord } from "../base/shell-word.js";
import { removeDeadTrials } from "../guest/dead-trials.js";
import { keyOf } from "../guest/guest.js";
import { JobFolder } from "../guest/job-folder.js";
import { judgeScratch } from "../guest/judge-scratch.js";
import { freeBytesThere } from "../guest/scratch-rooms.js";
import { SshPlace } from "../guest/ssh-job-folder.js";
import { freeBytesOfUsers } from "../host/free-bytes.js";
import { toolProcess } from "../host/tool-process.js";
import type { QemuUser } from "../libvirt/documents/domain-xml.js";
import { type Found, fail, pass, type Subject, warn } from "./check.js";

/** Bytes of an empty scratch file: header, tables and first clusters of a qcow2 image. */
const LEAST_PER_DISK = 1024 ** 2;
/**
 * How much a guest overwrites during its backup is unknown. With free space below this part of the bytes that
 * are read, the room may not suffice.
 */
const DOUBTFUL_PART = 1 / 20;
const DOUBTFUL_AT_MOST = 4 * 1024 ** 3;

/** Makes a trial folder as a job would, writes to it as QEMU's user, and removes it. */
export async function lookAtScratchFolder(subject: Subject): Promise<readonly Found[]> {
  const { scratchParent: parent, domain, security, ssh } = subject;
  const qemu = domain?.qemuUser ?? security?.qemuUser;
  const trial = JobFolder.trial(parent, ssh);
  try {
    if (ssh) {
      trial.assertShort();
      await new SshPlace(ssh).tryOut(trial.path, qemu);
      return [pass(`QEMU's user can be given a folder below ${parent} on its host`)];
    }
    await removeDeadTrials(resolve(parent));
    await trial.claim(qemu);
  } catch (cause) {
    if (cause instanceof BackupError) throw cause;
    return [noAccess(parent, messageOf(cause), "--scratch /var/tmp")];
  }
  const asQemu = qemu && process.getuid?.() === 0 ? qemu : undefined;
  try {
    if (await canWrite(trial.scratch("probe"), asQemu)) {
      return [pass(`${asQemu ? `QEMU's user (${asQemu.uid})` : "this user"} can write below ${parent}`)];
    }
  } finally {
    await trial.remove();
  }
  const closed = asQemu && (await firstClosed(resolve(parent), asQemu));
  if (closed === undefined) {
    return [noAccess(parent, `nothing can be written below ${parent}`, "--scratch /var/tmp")];
  }
  const cause = `QEMU's user (${asQemu?.uid}) can't pass through ${closed} to ${parent}`;
  return [noAccess(closed, cause, `chmod o+x ${shellWord(closed)}`)];
}

function noAccess(path: string, cause: string, mend: string): Found {
  const advice = "let QEMU's user in, or name another folder with --scratch";
  return fail("E_SCRATCH_ACCESS", cause, { advice, mend, details: { path } });
}

/** Whether that user can make a file. The user of this process needs no other one to find out. */
async function canWrite(path: string, user: QemuUser | undefined): Promise<boolean> {
  if (user && (user.uid !== process.getuid?.() || user.gid !== process.getgid?.())) {
    return await canDo("touch", path, user);
  }
  try {
    await writeFile(path, "");
    return true;
  } catch {
    return false;
  }
}

/** Runs a command on a path as that user, with its primary group only. */
async function canDo(
  command: string,
  path: string,
  user: QemuUser | undefined,
  ...options: string[]
): Promise<boolean> {
  const { execa } = await import("execa");
  const ran = await execa(command, [...options, path], {
    ...(user ? { uid: user.uid, gid: user.gid } : {}),
    ...toolProcess(),
    cwd: "/",
    reject: false,
    stdin: "ignore",
  });
  return !ran.failed;
}

/** The first folder on the path that the user may not enter. */
async function firstClosed(path: string, user: QemuUser): Promise<string | undefined> {
  const parts = path.split("/").filter((part) => part !== "");
  for (let i = 0; i <= parts.length; i += 1) {
    const folder = `/${parts.slice(0, i).join("/")}`;
    if (!(await canDo("test", folder, user, "-x"))) return folder;
  }
  return undefined;
}

export async function lookAtScratchSpace(subject: Subject): Promise<readonly Found[]> {
  const { scratchParent, scratchReserve, disks, forecast, ssh } = subject;
  // QEMU writes there, and the guard of a backup judges by the same.
  const unused = await (ssh ? freeBytesThere(ssh, scratchParent) : freeBytesOfUsers(scratchParent));
  const least = Math.max(1, disks?.length ?? 1) * LEAST_PER_DISK;
  const read = [...(forecast?.sizes.values() ?? [])].reduce((total, size) => total + size, 0);
  const doubtful = Math.min(read * DOUBTFUL_PART, DOUBTFUL_AT_MOST);
  const isShort = (bytes: number): boolean =>
    bytes < least || judgeScratch(bytes, [], scratchReserve).kind === "short";
  const free = unused + (isShort(unused) || unused < doubtful ? await bytesOfDead(subject) : 0);
  const what = `${scratchParent}${ssh ? ` on ${ssh.target.host}` : ""} has ${prettyBytes(free, { binary: true })} free`;
  if (isShort(free)) {
    const needed = Math.max(judgeScratch(free, [], scratchReserve).needed, least);
    return [
      fail("E_SCRATCH_FULL", `${what}, and scratch files need ${prettyBytes(needed, { binary: true })}`, {
        advice: "make room, or name a folder with more of it (--scratch)",
        mend: `du -xh ${shellWord(scratchParent)} | sort -h | tail`,
        details: { path: scratchParent, freeBytes: free },
      }),
    ];
  }
  if (free < doubtful) {
    const cause = `${what} for what the guest overwrites meanwhile, while some ${prettyBytes(read, { binary: true })} are read`;
    return [warn(cause, "--scratch DIR, on a file system with more room")];
  }
  return [pass(`${what} for what a guest overwrites during its backup`)];
}

/**
 * What a dead backup of this repository has left there: it goes before the next begins, unless that goes on
 * with it.
 */
async function bytesOfDead({ scratchParent, domain, repository, libvirt, ssh }: Subject): Promise<number> {
  if (!domain || !repository) return 0;
  const folder = await JobFolder.find(scratchParent, keyOf({ libvirt, domain, repository, ssh }), ssh);
  return (await folder.livingOwner()) === undefined ? await folder.usedBytes() : 0;
}
