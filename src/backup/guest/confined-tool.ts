/**
 * How qemu-img and qemu-nbd are run. They read what a guest's QEMU wrote, so as root they run as another
 * user, without capabilities and with limits on what they can use up.
 */
import { randomInt } from "node:crypto";
import { readFile } from "node:fs/promises";
import { toolProcess } from "../host/tool-process.js";
import type { QemuUser } from "../libvirt/documents/domain-xml.js";

/** The user and groups of a process. */
export interface ToolUser {
  readonly uid: number;
  readonly gid: number;
  readonly groups: readonly number[];
}

/** Who runs the tools; absent if this process is not root, since only root can change users. */
export interface ToolUsers {
  /** QEMU's user, which the domain's own QEMU would run as. */
  readonly qemu: ToolUser;
  /**
   * A group that no account has. Only the tools are in it, so that other processes of QEMU's user, the QEMUs
   * of other guests, can neither connect to the tools' sockets nor trace them.
   */
  readonly group: number;
}

type Tool = "qemu-img" | "qemu-nbd";

/** Bytes of memory that the bitmaps of large disks take, with a wide margin. */
const MEMORY: Readonly<Record<Tool, number>> = { "qemu-img": 4 * 1024 ** 3, "qemu-nbd": 8 * 1024 ** 3 };
const FILES = 1024;
/** Seconds of processor time in which qemu-img describes an image. */
const INSPECTION_S = 60;

/**
 * The users for the tools of one backup.
 * @param user the user of the domain's QEMU; undefined: libvirt changes no users, so it is this process' own
 */
export async function toolUsers(user: QemuUser | undefined): Promise<ToolUsers | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  const { uid, gid } = user ?? { uid: 0, gid: 0 };
  const { execa } = await import("execa");
  const { stdout, failed } = await execa("id", ["-G", String(uid)], {
    ...toolProcess(),
    ...{ reject: false, stdin: "ignore" },
  });
  const own = failed ? [] : stdout.split(" ").map(Number);
  const group = await unusedGroup();
  return { qemu: { uid, gid: group, groups: [...new Set([gid, ...own])] }, group };
}

/** A number from the upper quarter of the groups that this process may give: no account has such a group. */
async function unusedGroup(): Promise<number> {
  const map = await readFile("/proc/self/gid_map", "utf8");
  const ends = map
    .trim()
    .split("\n")
    .map((line) => {
      const [first = 0, , count = 0] = line.trim().split(/\s+/).map(Number);
      return first + count;
    });
  // The last two numbers mean "nobody" and "unchanged"; more than 48 bits are too many for `randomInt`.
  const end = Math.min(Math.max(...ends), 2 ** 32) - 2;
  return randomInt(Math.floor((end / 4) * 3), end);
}

/** The file and arguments of a command that runs the tool; the kernel ends it together with this process. */
export function confined(
  tool: Tool,
  args: readonly string[],
  user: ToolUser | undefined,
): [string, string[]] {
  const limits = [
    `--data=${MEMORY[tool]}`,
    "--core=0",
    // They only read.
    "--fsize=0",
    `--nofile=${FILES}`,
    ...(tool === "qemu-img" ? [`--cpu=${INSPECTION_S}`] : []),
  ];
  return ["prlimit", [...limits, "setpriv", "--pdeathsig", "TERM", ...identityOf(user), tool, ...args]];
}

/** Whether the user may read what is there, and it is a plain file or a block device. */
export async function mayRead(user: ToolUser, path: string, kind: "file" | "block"): Promise<boolean> {
  const is = kind === "file" ? "-f" : "-b";
  const args = [...identityOf(user), "test", "-r", path, "-a", is, path];
  const { execa } = await import("execa");
  return !(await execa("setpriv", args, { ...toolProcess(), cwd: "/", reject: false, stdin: "ignore" }))
    .failed;
}

function identityOf(user: ToolUser | undefined): string[] {
  if (!user) return ["--no-new-privs"];
  const { uid, gid, groups } = user;
  return [
    "--no-new-privs",
    `--reuid=${uid}`,
    `--regid=${gid}`,
    groups.length === 0 ? "--clear-groups" : `--groups=${groups.join(",")}`,
    "--inh-caps=-all",
    "--bounding-set=-all",
  ];
}
