import { chmod, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { basename, delimiter, join } from "node:path";
import { findTool } from "./tools.js";

/**
 * A virsh in front of the real one. It answers for the guest agent, which the lab's guest lacks, in the words
 * of qemu-ga 7.2, and logs the commands below. The commands in `FAIL` and `HANG` fail or hang without the real
 * virsh; the first with the error `SAID`. The one in `LATE` runs, but returns late. `list` prints the domain in
 * `RUNNING`, because the system's libvirt may have others.
 */
const SCRIPT = `#!/bin/sh
frozen() { echo "error: internal error: unable to execute QEMU agent command '$1': Command $1 has been disabled: the agent is in frozen state" >&2; exit 1; }
for arg in "$@"; do case "$arg" in
  domfsinfo) [ -e "$ASKED.frozen" ] && frozen guest-get-fsinfo; printf ' Mountpoint  Name  Type  Target\\n---------\\n /           vda1  ext4  vda\\n /srv        vda2  ext4  vda\\n'; exit 0;;
  list) [ -n "$RUNNING" ] && { echo "$RUNNING"; exit 0; };;
  backup-begin|domjobabort|domfsfreeze|domfsthaw)
    echo "$*" | sed "s/.*$arg/$arg/; s/ *--domain=[^ ]*//; s/ *--backupxml.*//" >> "$ASKED"
    [ "$arg" = "$FAIL" ] && { echo "error: \${SAID:-refused}" >&2; exit 1; }
    [ "$arg" = "$HANG" ] && { sleep 4; exit 1; }
    [ "$arg" = "$LATE" ] && { "$VIRSH" "$@"; code=$?; echo "$arg done" >> "$ASKED"; sleep 3; exit $code; }
    case "$arg" in
      domfsfreeze) [ -e "$ASKED.frozen" ] && frozen guest-fsfreeze-freeze; touch "$ASKED.frozen"; exit 0;;
      domfsthaw) rm -f "$ASKED.frozen"; exit 0;;
    esac;;
esac; done
exec "$VIRSH" "$@"
`;

export interface InFront {
  /** The environment for a program that is to use it. */
  readonly env: (trouble?: {
    readonly FAIL?: string;
    readonly SAID?: string;
    readonly HANG?: string;
    readonly LATE?: string;
    readonly RUNNING?: string;
  }) => Record<string, string>;
  /** The logged commands, oldest first. */
  readonly asked: () => Promise<string[]>;
  /** Somebody else freezes the guest. */
  readonly freeze: () => Promise<void>;
  readonly isFrozen: () => Promise<boolean>;
}

/** @param folder where the program is stored */
export async function virshInFront(folder: string): Promise<InFront> {
  const bin = join(folder, "bin");
  const log = join(folder, "asked");
  const frozen = `${log}.frozen`;
  await mkdir(bin);
  await writeFile(join(bin, "virsh"), SCRIPT);
  await chmod(join(bin, "virsh"), 0o755);
  const path = `${bin}${delimiter}${process.env["PATH"]}`;
  return {
    env: (trouble) => ({
      FAIL: "",
      SAID: "",
      RUNNING: "",
      HANG: "",
      LATE: "",
      ...trouble,
      PATH: path,
      VIRSH: findTool("virsh") ?? "",
      ASKED: log,
    }),
    asked: async () => {
      const text = await readFile(log, "utf8").catch(() => "");
      return text.split("\n").filter((line) => line !== "");
    },
    freeze: () => writeFile(frozen, ""),
    isFrozen: async () => (await readdir(folder)).includes(basename(frozen)),
  };
}
