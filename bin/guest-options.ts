/** Options that `backup` and `doctor` share: where a job would run, and on which domains and disks. */
import { type Command, InvalidArgumentError, Option } from "commander";
import type { EncryptedPolicy } from "../src/backup/guest/encrypted-disks.js";
import { LEVELS, type Level } from "../src/backup/guest/levels.js";
import type { DiskChoice } from "../src/backup/libvirt/choose-disks.js";
import { type JobServerOptions, withJobServer } from "./job-server.js";
import { grouped } from "./option-groups.js";
import {
  collect,
  DISKS_GROUP,
  LEVELS_GROUP,
  SCRATCH_GROUP,
  type ScratchOptions,
  withEncrypted,
  withScratchReserve,
} from "./options.js";

export const SCRATCH_PARENT = "/var/tmp";

export interface GuestOptions extends JobServerOptions, ScratchOptions {
  readonly level: Level;
  readonly include?: readonly string[];
  readonly exclude?: readonly string[];
  readonly scratch: string;
  readonly freeze?: string | true;
  readonly encrypted: EncryptedPolicy;
  readonly connect?: string;
}

export function withGuest(command: Command): Command {
  command
    .option(
      "--freeze [what]",
      "freeze the guest's file systems while the job begins: all of them, /A,/B only these, auto where an agent answers; default no",
      mountpoints,
    )
    .option("--connect <uri>", "libvirt connection, as virsh -c");
  grouped(command, LEVELS_GROUP, () =>
    command.addOption(
      new Option("--level <level>", "what to take; auto is incremental where that is possible")
        .choices([...LEVELS])
        .default("auto"),
    ),
  );
  grouped(command, DISKS_GROUP, () =>
    command
      .option("--include <disk>", "only this disk; may be given several times", collect)
      .option("--exclude <disk>", "not this disk; may be given several times", collect),
  );
  withEncrypted(command);
  grouped(command, SCRATCH_GROUP, () =>
    command.option(
      "--scratch <dir>",
      "where the job's folder is made, for socket and scratch files",
      SCRATCH_PARENT,
    ),
  );
  return withJobServer(withScratchReserve(command));
}

/** Of Windows guests they are `C:\\` and the like. */
function mountpoints(text: string): string {
  if (["", "auto", "no"].includes(text) || text.split(",").every((each) => /[/\\:]/.test(each))) return text;
  throw new InvalidArgumentError("give auto, no, or mountpoints such as /var");
}

export function disksOf({ include = [], exclude = [] }: GuestOptions): DiskChoice {
  return { include, exclude };
}
