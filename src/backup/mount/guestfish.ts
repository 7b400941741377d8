/** The file systems of disks as files, by libguestfs: a small virtual machine reads them, not this host. */
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { BackupError, PreconditionError } from "../base/errors.js";
import { LastWords } from "../host/last-words.js";
import { asOurs, isMounted, unmount } from "./fuse-mounts.js";

/** The machine boots within seconds where there is KVM, and within minutes without. */
const START_MS = 600_000;
const POLL_MS = 50;
const END_MS = 10_000;
/** What is said so often is no list of file systems. */
const MOST_OUTPUT = 1024 * 1024;
const END = "NBDPULL-END";
/** Devices that go into a command of guestfish, which would run others: `!sh`, `| sh`. */
const DEVICE = /^(?:btrfsvol:)?\/dev\/[\w.+-]+(?:\/[\w.+-]+)*$/;
/** What guestfish calls something that it can't mount. */
const NO_FILES = ["swap", "unknown", "crypto_LUKS", "LVM2_member", "linux_raid_member"];

/** A file system, as its guest made it. */
export interface GuestFileSystem {
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
  /** The names of disks and of their exports. */
  readonly disks: readonly string[];
  readonly point: string;
}

export interface GuestFiles {
  readonly shown: readonly ShownFileSystem[];
  /** Others that were found, and why they are not shown. */
  readonly leftOut: readonly (GuestFileSystem & { readonly reason: string })[];
}

/** The file systems in a folder, until that is unmounted by anybody. */
export class GuestFish implements AsyncDisposable {
  readonly path: string;
  /**
   * Settles when guestfish has ended and its mount is gone. Rejects with `E_GUESTFS` if nobody asked for
   * that.
   */
  readonly ended: Promise<void>;
  readonly #child;
  readonly #said = new LastWords();
  #answer = "";
  #isClosing = false;
  #hasEnded = false;

  private constructor({ path, folder }: FileSystems) {
    this.path = path;
    // Paths of users, which may have blanks, are in no command: names below the working folder are.
    // Without a terminal it would keep its answers until it ends.
    const wrapped = ["--pdeathsig", "TERM", "stdbuf", "--output=L", "guestfish", "--no-progress-bars"];
    const child = execa("setpriv", wrapped, {
      cwd: folder,
      reject: false,
      buffer: false,
      // The user's own daemon of libvirt may not be allowed to read the socket.
      env: { LC_ALL: "C", LIBGUESTFS_BACKEND: process.env["LIBGUESTFS_BACKEND"] ?? "direct" },
    });
    child.stdin.on("error", () => undefined);
    child.stderr.setEncoding("utf8").on("data", (text: string) => this.#said.add(text));
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      if (this.#answer.length < MOST_OUTPUT) this.#answer += text;
    });
    this.#child = child;
    this.ended = child.then(async (result) => await this.#end(result));
    this.ended.catch(() => undefined);
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
    const found = parseFileSystems(await this.#ask([...drives, "run", "list-filesystems"], signal));
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
      ...found.filter((each) => !isMountable(each)).map((each) => ({ ...each, reason: whyNot(each) })),
      ...failed.map(({ device, type }) => ({ device, type, reason: "it can't be mounted" })),
    ];
    if (shown.length === 0) {
      const kinds = leftOut.map(({ device, type, reason }) => `${device} (${type}): ${reason}`).join("; ");
      const message = `the disks of point ${point} have no file system that libguestfs can mount${kinds === "" ? "" : `: ${kinds}`}. Without --files they are shown as disks`;
      throw new PreconditionError("E_NO_FILES", message, { details: { point } });
    }
    const options = `options:${asOurs(point).join(",")},nosuid,nodev,noexec`;
    await this.#ask(
      failed.map(({ name }) => `rmmountpoint /${name}`),
      signal,
    );
    this.#child.stdin.end(
      `mount-local ${path.slice(folder.length + 1)} readonly:true ${options}\nmount-local-run\n`,
    );
    await this.#until(() => isMounted(path), signal);
    return { shown, leftOut };
  }

  /** @returns what guestfish prints until it has done them all */
  async #ask(commands: readonly string[], signal: AbortSignal | undefined): Promise<string> {
    this.#answer = "";
    this.#child.stdin.write(`${[...commands, `echo ${END}`].join("\n")}\n`);
    await this.#until(async () => this.#answer.endsWith(`${END}\n`), signal);
    return this.#answer.slice(0, -END.length - 1);
  }

  async #until(isDone: () => Promise<boolean>, signal: AbortSignal | undefined): Promise<void> {
    const began = performance.now();
    while (!(await isDone())) {
      if (this.#hasEnded) await this.ended;
      if (this.#hasEnded) throw failure(this.path, this.#said.text.trim() || "it ended early");
      signal?.throwIfAborted();
      if (performance.now() - began > START_MS) {
        throw failure(this.path, `nothing is mounted there after ${START_MS / 60_000} minutes`);
      }
      await sleep(POLL_MS);
    }
  }

  /** Takes the mount away, also from those who read it just now, and ends the machine. */
  async close(): Promise<void> {
    this.#isClosing = true;
    if (await isMounted(this.path)) await unmount(this.path, { lazily: true }).catch(() => undefined);
    this.#child.stdin.end();
    const end = setTimeout(() => this.#child.kill("SIGTERM"), END_MS / 2);
    const kill = setTimeout(() => this.#child.kill("SIGKILL"), END_MS);
    await this.ended.catch(() => undefined);
    clearTimeout(end);
    clearTimeout(kill);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #end({ exitCode, signal }: { exitCode?: number; signal?: string }): Promise<void> {
    this.#hasEnded = true;
    const isLeft = await isMounted(this.path);
    if (isLeft) await unmount(this.path, { lazily: true });
    if (this.#isClosing || (exitCode === 0 && !isLeft)) return;
    const how = signal === undefined ? `exit code ${exitCode}` : `a signal, ${signal}`;
    throw failure(this.path, this.#said.text.trim() || how);
  }
}

/**
 * `/dev/sda1: ext4`, a line each. A guest chooses names of volumes, so a line that is anything else is left
 * out as a whole.
 */
export function parseFileSystems(text: string): GuestFileSystem[] {
  return text.split("\n").flatMap((line) => {
    const [, device = "", type = ""] = /^(\S+): (\w+)$/.exec(line) ?? [];
    return DEVICE.test(device) && !device.includes("/..") ? [{ device, type }] : [];
  });
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
  if (/failed to (?:execute|run command)/.test(why)) {
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
