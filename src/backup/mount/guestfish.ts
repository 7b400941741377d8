/** The file systems of disks as files, by libguestfs: a small virtual machine reads them, not this host. */
import { randomUUID } from "node:crypto";
import { basename } from "node:path";
import type { Writable } from "node:stream";
import { execa } from "execa";
import { BackupError, PreconditionError } from "../base/errors.js";
import { printable } from "../base/printable.js";
import { endWithHelpers, killGroup } from "../host/helpers-of-process.js";
import { toolProcess } from "../host/tool-process.js";
import { asOurs } from "./fuse-mounts.js";
import { FuseProcess } from "./fuse-process.js";

/** The machine boots within seconds where there is KVM, and within minutes without. */
const START_MS = 600_000;
/** For the machine to end, which it may have to boot for. */
const END_MS = 20_000;
/** What is said so often is no list of file systems. */
const MOST_OUTPUT = 1024 * 1024;
/** Devices that go into a command of guestfish, which would run others: `!sh`, `| sh`. */
const DEVICE = /^(?:btrfsvol:)?\/dev\/[\w.+@:-]+(?:\/[\w.+@:-]+)*$/;
/** What guestfish calls something that it can't mount. */
const NO_FILES = ["swap", "unknown", "crypto_LUKS", "LVM2_member", "linux_raid_member"];

/**
 * Runs guestfish, with the name of its mount. A signal would leave its folders in /tmp and its mount; so this
 * shell gets that one instead, by which the kernel tells that nbdpull was killed. It takes the mount away,
 * and guestfish ends by itself, at the end of its input.
 */
const SCRIPT = `
end() {
  told=1
  { if [ "$(id -u)" = 0 ]; then umount --force --lazy "./$0"; else fusermount3 -u -z "./$0"; fi; } >/dev/null 2>&1
  { cd / && sleep ${END_MS / 1000 + 5} && kill -9 "$fish"; } >/dev/null 2>&1 &
  guard=$!
}
trap end TERM
exec 3<&0 </dev/null
# Whoever ends a whole unit signals it too. Without a terminal it would keep its answers until it ends.
(trap "" HUP TERM; exec stdbuf --output=L guestfish --no-progress-bars) <&3 3<&- &
fish=$!
exec 3<&-
wait "$fish"
code=$?
if [ -n "\${told:-}" ]; then
  wait "$fish"
  code=$?
  kill "$guard"
fi
exit "$code"`;

/** A file system, as its guest made it. */
interface GuestFileSystem {
  /** Of the machine that reads it: `/dev/sda1`, `/dev/vg/root`. */
  readonly device: string;
  /** `ext4`, … */
  readonly type: string;
}

/** One that is shown. */
export interface ShownFileSystem extends GuestFileSystem {
  /** Of its folder: that of the disk and a number, or of the logical volume. */
  readonly name: string;
}

interface FileSystems {
  /** An empty folder, as a path without links. */
  readonly path: string;
  /** The folder above it, which has the socket. */
  readonly folder: string;
  /** Name of the socket in that folder. */
  readonly socket: string;
  /** An empty folder, in which libguestfs keeps files while it runs. */
  readonly temporary: string;
  /** The names of disks and of their exports. */
  readonly disks: readonly string[];
  readonly point: string;
}

export interface GuestFiles {
  readonly shown: readonly ShownFileSystem[];
  /** Others that were found, and why they are not shown. */
  readonly leftOut: readonly (GuestFileSystem & { readonly reason: string })[];
}

/** The file systems in a folder. `ended` rejects with `E_GUESTFS`. */
export class GuestFish extends FuseProcess {
  readonly #input: Writable;
  #answer = "";
  #saysTooMuch = false;

  private constructor({ path, folder, temporary }: FileSystems) {
    // Paths of users, which may have blanks, are in no command: names below the working folder are.
    const wrapped = ["--pdeathsig", "TERM", "/bin/sh", "-c", SCRIPT, basename(path)];
    const child = execa("setpriv", wrapped, {
      cwd: folder,
      reject: false,
      buffer: false,
      // Keeps Ctrl-C on the terminal from reaching it: the mount is taken away first.
      detached: true,
      forceKillAfterDelay: false,
      ...toolProcess({
        // The user's own daemon of libvirt may not be allowed to read the socket.
        LIBGUESTFS_BACKEND: process.env["LIBGUESTFS_BACKEND"] ?? "direct",
        LIBGUESTFS_TMPDIR: temporary,
      }),
    });
    super(path, child, {
      startMs: START_MS,
      pollMs: 50,
      endMs: END_MS,
      kill: () => killGroup(child),
      failure: (why) => failure(path, why),
      tooLate: `nothing is mounted there after ${START_MS / 60_000} minutes; where KVM is slow or faulty, LIBGUESTFS_BACKEND_SETTINGS=force_tcg does without`,
    });
    endWithHelpers(child);
    child.stdin.on("error", () => undefined);
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      this.#saysTooMuch ||= this.#answer.length + text.length > MOST_OUTPUT;
      if (!this.#saysTooMuch) this.#answer += text;
    });
    this.#input = child.stdin;
  }

  /**
   * Resolves when the files can be read.
   * @throws {PreconditionError} `E_NO_GUESTFS`: libguestfs is not installed, or has no kernel to start;
   *   `E_NO_FILES`: none of the disks has a file system that it can mount
   * @throws {BackupError} `E_GUESTFS`: it can't start or mount; the message has its reason
   * @throws the signal's reason
   */
  static async mount(
    where: FileSystems,
    signal: AbortSignal | undefined,
  ): Promise<{ readonly fish: GuestFish; readonly files: GuestFiles }> {
    signal?.throwIfAborted();
    const fish = new GuestFish(where);
    try {
      const files = await fish.#show(where, signal);
      return { fish, files };
    } catch (error) {
      await fish.close();
      throw error;
    }
  }

  async #show(where: FileSystems, signal: AbortSignal | undefined): Promise<GuestFiles> {
    const { disks, socket, path, folder, point } = where;
    const drives = disks.map(
      (disk) => `add-drive ${disk} readonly:true format:raw protocol:nbd server:unix:${socket}`,
    );
    const { found, odd } = parseFileSystems(await this.#ask([...drives, "run", "list-filesystems"], signal));
    const wanted = nameAll(found.filter(isMountable), disks);
    const mounting = wanted.flatMap(({ name, device }) => [
      `mkmountpoint /${name}`,
      // A dash: guestfish goes on if this fails.
      `-mount-ro ${device} /${name}`,
    ]);
    const mounted = mountedIn(await this.#ask([...mounting, "mountpoints"], signal));
    const shown = wanted.filter(({ name }) => mounted.has(name));
    const failed = wanted.filter(({ name }) => !mounted.has(name));
    const leftOut = [
      ...odd.map((each) => ({ ...each, reason: "its name has characters that guestfish would misread" })),
      ...found.filter((each) => !isMountable(each)).map((each) => ({ ...each, reason: whyNot(each) })),
      ...failed.map(({ device, type }) => ({ device, type, reason: "it can't be mounted" })),
    ];
    if (shown.length === 0) {
      const kinds = leftOut.map(({ device, type, reason }) => `${device} (${type}): ${reason}`).join("; ");
      const message = `the disks of point ${point} have no file system that libguestfs can mount${kinds === "" ? "" : `: ${kinds}`}. Without --files they are shown as disks`;
      throw new PreconditionError("E_NO_FILES", message, { details: { point } });
    }
    const options = `options:${asOurs(point).join(",")},ro,nosuid,nodev,noexec`;
    await this.#ask(
      failed.map(({ name }) => `rmmountpoint /${name}`),
      signal,
    );
    this.#input.end(
      `mount-local ${path.slice(folder.length + 1)} readonly:true ${options}\nmount-local-run\n`,
    );
    await this.mounted(signal);
    return { shown, leftOut };
  }

  /** @returns what guestfish prints until it has done them all */
  async #ask(commands: readonly string[], signal: AbortSignal | undefined): Promise<string> {
    // The guest, whose names are in the answer, can't know where it ends.
    const end = `nbdpull-${randomUUID()}\n`;
    this.#answer = "";
    this.#input.write([...commands, `echo ${end}`].join("\n"));
    const isAnswered = async (): Promise<boolean> => {
      if (this.#saysTooMuch) throw failure(this.path, `it prints more than ${MOST_OUTPUT} bytes`);
      return this.#answer.endsWith(end);
    };
    await this.until(isAnswered, signal);
    return this.#answer.slice(0, -end.length);
  }

  /** Ends the machine too. */
  override async close(): Promise<void> {
    this.#input.end();
    await super.close();
  }
}

/**
 * `/dev/sda1: ext4`, a line each. A guest chooses names of volumes, so a line that is anything else is no
 * part of a command.
 * @returns also those, as text that a terminal shows
 */
export function parseFileSystems(text: string): {
  readonly found: readonly GuestFileSystem[];
  readonly odd: readonly GuestFileSystem[];
} {
  const found: GuestFileSystem[] = [];
  const odd: GuestFileSystem[] = [];
  for (const line of text.split("\n").filter((each) => each.trim() !== "")) {
    const [, device = line, type = "unknown"] = /^(.+): (\w+)$/.exec(line) ?? [];
    if (DEVICE.test(device) && !device.includes("/..")) found.push({ device, type });
    else odd.push({ device: printable(device), type });
  }
  return { found, odd };
}

/** `/dev/sda1: /vda1`, a line each. */
function mountedIn(text: string): Set<string> {
  return new Set(text.split("\n").flatMap((line) => /: \/(\S+)$/.exec(line)?.[1] ?? []));
}

/**
 * Names that tell which disk it is: `/dev/sdb1` is `vdb1` if vdb is the second disk.
 * @param disks in the order in which they were added
 */
export function nameAll(found: readonly GuestFileSystem[], disks: readonly string[]): ShownFileSystem[] {
  const taken = new Set<string>();
  return found.map((each) => {
    const plain = each.device.replace(/^btrfsvol:/, "").replace(/^\/dev\//, "");
    const [, letters, rest = ""] = /^sd([a-z]{1,2})(\d.*|\/.*)?$/.exec(plain) ?? [];
    const disk = letters === undefined ? undefined : disks[placeOf(letters)];
    const base = (disk === undefined ? plain : `${disk}${rest}`).replaceAll("/", "-");
    let name = base;
    for (let n = 2; taken.has(name); n += 1) name = `${base}.${n}`;
    taken.add(name);
    return { ...each, name };
  });
}

/** `a` is 0, `z` 25, `aa` 26. */
function placeOf(letters: string): number {
  return [...letters].reduce((place, letter) => 26 * place + letter.charCodeAt(0) - 96, 0) - 1;
}

function isMountable({ type }: GuestFileSystem): boolean {
  return !NO_FILES.includes(type);
}

function whyNot({ type }: GuestFileSystem): string {
  return type === "crypto_LUKS" ? "the guest has encrypted it" : "it is no file system";
}

function failure(path: string, why: string): BackupError {
  if (/failed to (?:execute|run command)|stdbuf: not found/.test(why)) {
    const message =
      "libguestfs isn't installed, which shows the files in disks: apt install guestfish (Fedora: guestfs-tools); without --files the disks are shown";
    return new PreconditionError("E_NO_GUESTFS", message);
  }
  if (/suitable kernel/.test(why)) {
    const message = `libguestfs can't start its machine, mostly for want of a kernel in /boot: apt install linux-image-amd64, and see what libguestfs-test-tool says (${why})`;
    return new PreconditionError("E_NO_GUESTFS", message);
  }
  return new BackupError("E_GUESTFS", `libguestfs has ended at ${path}: ${why}`, { details: { path } });
}
