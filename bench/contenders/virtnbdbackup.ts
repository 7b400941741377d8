import { mkdir, readdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { execa } from "execa";
import { type BackupCommands, fullThenChange } from "../guests.js";
import { compareImages, type Image } from "../images.js";
import { PROGRAMS } from "../programs.js";
import {
  type Command,
  type Contender,
  type Guest,
  guestOf,
  guestsOf,
  storedIn,
  type Task,
} from "../workload.js";

const needs = [PROGRAMS.libvirt, PROGRAMS.virtnbdbackup];

/** As its users run it, without the progress bar. */
export const VIRTNBDBACKUP: BackupCommands = {
  full: (guest, to) => backupCommand("full", guest, to),
  incremental: (guest, to) => backupCommand("inc", guest, to),
};

function backupCommand(level: "full" | "inc", { domain, folder, uri }: Guest, to: string): Command {
  const places = ["-S", folder, "-f", join(folder, "nbd.sock")];
  const through = uri === undefined ? [] : ["-U", uri];
  return {
    program: "virtnbdbackup",
    args: ["-d", domain, "-l", level, "-o", to, ...places, ...through, "-n"],
  };
}

/** An increment goes into the folder of the full backup that it needs. */
const backups = (task: Task): string => join(task.output, "backups");

export function virtnbdbackup(level: "full" | "incremental"): Contender {
  return {
    name: "virtnbdbackup",
    needs,
    command: async (task) => {
      if (level === "incremental") await fullThenChange(VIRTNBDBACKUP, guestOf(task), backups(task));
      return VIRTNBDBACKUP[level](guestOf(task), backups(task));
    },
    verify: async (task) => {
      const { program, args } = restoreCommand(backups(task), task.output);
      await execa(program, args);
      const { before, after } = guestOf(task);
      await compareImages(await restored(task), level === "full" ? before : after);
      return "virtnbdrestore, then qemu-img compare with the disk";
    },
  };
}

/** Several domains, one after the other: it takes one at a time. */
export function virtnbdbackupEach(): Contender {
  const toOf = (task: Task, { domain }: Guest): string => join(task.output, domain);
  return {
    name: "virtnbdbackup",
    needs,
    command: (task) => {
      const lines = guestsOf(task).map((guest) => {
        const { program, args } = VIRTNBDBACKUP.full(guest, toOf(task, guest));
        return [program, ...args].map((word) => `'${word}'`).join(" ");
      });
      return { program: "sh", args: ["-e", "-c", lines.join("\n")] };
    },
    verify: async (task) => {
      for (const guest of guestsOf(task)) {
        const output = join(task.output, `${guest.domain}-restored`);
        await mkdir(output);
        const { program, args } = restoreCommand(toOf(task, guest), output);
        await execa(program, args);
        await compareImages(await restored({ ...task, output }), guest.before);
      }
      return "virtnbdrestore of each, then qemu-img compare with its disk";
    },
  };
}

export function virtnbdrestore(): Contender {
  return {
    name: "virtnbdrestore",
    needs,
    command: (task) => {
      const { virtnbdbackup: from } = storedIn(task);
      if (from === undefined) throw new Error("there are no backups of virtnbdbackup");
      return restoreCommand(from, task.output);
    },
    verify: async (task) => {
      await compareImages(await restored(task), storedIn(task).expected);
      return "qemu-img compare with the disk at the newest point";
    },
  };
}

const restoredTo = (output: string): string => join(output, "restored");

/** A qcow2 image. Its socket would be in /var/tmp otherwise, and its log in the home folder. */
function restoreCommand(from: string, output: string): Command {
  const places = ["-f", join(dirname(output), "restore.sock"), "-L", join(output, "restore.log")];
  return {
    program: "virtnbdrestore",
    args: ["-a", "restore", "-i", from, "-o", restoredTo(output), ...places, "-n"],
  };
}

async function restored({ output }: Task): Promise<Image> {
  const names = await readdir(restoredTo(output));
  const name = names.find((each) => each.endsWith(".qcow2"));
  if (name === undefined) throw new Error(`virtnbdrestore has made no image, only ${names.join(", ")}`);
  return { path: join(restoredTo(output), name), format: "qcow2" };
}
