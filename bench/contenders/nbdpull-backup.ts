import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { type BackupCommands, fullThenChange } from "../guests.js";
import { compareImages, type Image } from "../images.js";
import { NBDPULL } from "../paths.js";
import { PROGRAMS } from "../programs.js";
import { type Command, type Contender, type Guest, guestOf, guestsOf, type Task } from "../workload.js";

/** As its users run it, but for the flush at the end, which virtnbdbackup doesn't make either. */
export const NBDPULL_BACKUP: BackupCommands = {
  full: (guest, to) => backupCommand("full", guest, to),
  incremental: (guest, to) => backupCommand("incremental", guest, to),
};

function backupCommand(level: "full" | "incremental", guest: Guest, to: string): Command {
  return backupsCommand(level, [guest], guest, to);
}

function backupsCommand(
  level: "full" | "incremental",
  guests: readonly Guest[],
  { folder, uri }: Guest,
  to: string,
): Command {
  const how = ["--level", level, "--scratch", folder, "--no-fsync", "--quiet"];
  const through = uri === undefined ? [] : ["--connect", uri];
  const names = guests.map(({ domain }) => domain);
  const args = [NBDPULL, "backup", ...names, "--to", to, "--create", ...how, ...through];
  return { program: process.execPath, args };
}

const repository = (task: Task): string => join(task.output, "repository");

/** A domain of libvirt as a restore point, with its digests. @param options of the measured backup */
export function nbdpullBackup(level: "full" | "incremental", ...options: readonly string[]): Contender {
  return {
    name: ["nbdpull backup", ...options].join(" "),
    needs: [PROGRAMS.libvirt],
    command: async (task) => {
      if (level === "incremental") await fullThenChange(NBDPULL_BACKUP, guestOf(task), repository(task));
      const { program, args } = NBDPULL_BACKUP[level](guestOf(task), repository(task));
      return { program, args: [...args, ...options] };
    },
    verify: async (task) => {
      const { before, after } = guestOf(task);
      const points = level === "full" ? 1 : 2;
      await compareImages(await newestImage(task, points), level === "full" ? before : after);
      return `qemu-img compare of the point's image${level === "full" ? "" : ", based on the full one,"} with the disk`;
    },
  };
}

/**
 * Several domains by one run, as `--all` takes them; named, since the host may have others.
 * @param options of the measured backup
 */
export function nbdpullBackups(...options: readonly string[]): Contender {
  return {
    name: ["nbdpull backup", ...options].join(" "),
    needs: [PROGRAMS.libvirt],
    command: (task) => {
      const guests = guestsOf(task);
      const [first] = guests;
      if (first === undefined) throw new Error("there is no domain");
      const { program, args } = backupsCommand("full", guests, first, repository(task));
      return { program, args: [...args, ...options] };
    },
    verify: async (task) => {
      for (const guest of guestsOf(task)) {
        await compareImages(await newestImage({ ...task, guest }, 1), guest.before);
      }
      return "qemu-img compare of each point's image with its disk";
    },
  };
}

/** Points are named by their time. */
async function newestImage(task: Task, points: number): Promise<Image> {
  const { domain, disk } = guestOf(task);
  const folder = join(repository(task), domain);
  const names = (await readdir(folder)).sort();
  if (names.length !== points) throw new Error(`there are the points ${names.join(", ")}`);
  return { path: join(folder, names.at(-1) ?? "", `${disk}.qcow2`), format: "qcow2" };
}
