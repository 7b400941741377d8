/**
 * The mount room shows the disks of a restore point as files in a folder, read-only: the serve room proves
 * what is read, and libnbd's nbdfuse makes a file of each export.
 *
 *     DIR/vda ── nbdfuse ── DIR/.nbdpull-mount.sock ── servePoint ── the point's chain
 *
 * Read this file first, then nbdfuse.ts (one disk), guestfish.ts (file systems), mount-folder.ts (the folder,
 * and what a run that was killed left there) and fuse-mounts.ts (the kernel's table, and unmounting). Nothing
 * here reads or writes a repository by itself.
 */

import { constants } from "node:fs";
import { access, realpath } from "node:fs/promises";
import { join, resolve } from "node:path";
import { PreconditionError } from "../base/errors.js";
import { closeAll } from "../base/in-parallel.js";
import { isMissing } from "../host/durable-files.js";
import { type PointServer, type ServedDisk, type ServeOptions, servePoint } from "../serve/serve.js";
import { isMounted, mountsIn, unmount } from "./fuse-mounts.js";
import { type GuestFiles, GuestFish, type ShownFileSystem } from "./guestfish.js";
import { clearLeft, MOUNT_SOCKET, MountFolder } from "./mount-folder.js";
import { NbdFuse } from "./nbdfuse.js";

interface MountOptions extends Omit<ServeOptions, "address" | "host" | "tls"> {
  /** An empty folder, or one to make. */
  readonly folder: string;
}

/** A disk as a file. */
interface MountedDisk extends Omit<ServedDisk, "uri"> {
  /** Without links. */
  readonly path: string;
}

/**
 * Shows each disk of a restore point as a file of its name. What is damaged reads as EIO; `onEvent` has the
 * reason.
 *
 * @throws as {@link servePoint}
 * @throws {PreconditionError} `E_NO_FUSE`: this machine has no FUSE, or no nbdfuse; `E_MOUNTED`;
 *   `E_MOUNT_FOLDER`
 * @throws {BackupError} `E_NBDFUSE`: nbdfuse can't mount there
 */
export async function mountPoint(options: MountOptions): Promise<MountedPoint> {
  await requireFuse();
  const folder = await MountFolder.prepare(options.folder);
  const fuses: NbdFuse[] = [];
  let server: PointServer | undefined;
  try {
    server = await servePoint({ ...options, address: { path: folder.socket } });
    const { point } = server;
    for (const { disk, uri } of server.disks) {
      const path = await folder.fileFor(disk);
      fuses.push(await NbdFuse.mount({ path, uri, point: point.id }, options.signal));
    }
    return new MountedPoint(folder, server, fuses);
  } catch (error) {
    await closeAll(...fuses).catch(() => undefined);
    // A socket that is there already belongs to another run, and so do the files.
    if (server) await folder.clear().finally(async () => await server?.close());
    await folder.abandon();
    throw error;
  }
}

/** A file system as a folder. */
interface MountedFileSystem extends ShownFileSystem {
  /** Without links. */
  readonly path: string;
}

interface MountedFiles extends Omit<GuestFiles, "shown"> {
  readonly fileSystems: readonly MountedFileSystem[];
}

/**
 * Shows the file systems of a restore point's disks as folders, below `files` in the folder: libguestfs reads
 * them in a small virtual machine, so that nothing of the guest's reaches this host's kernel.
 *
 * @throws as {@link mountPoint}, but for nbdfuse
 * @throws {PreconditionError} `E_NO_GUESTFS`: libguestfs is not installed; `E_NO_FILES`: there is no file
 *   system that it can mount
 * @throws {BackupError} `E_GUESTFS`: it can't mount there
 */
export async function mountFiles(options: MountOptions): Promise<MountedPoint> {
  await requireFuse();
  const folder = await MountFolder.prepare(options.folder);
  let server: PointServer | undefined;
  try {
    server = await servePoint({ ...options, address: { path: folder.socket } });
    const path = await folder.folderForFiles();
    const temporary = await folder.temporary();
    const { fish, files } = await GuestFish.mount(
      {
        ...{ path, folder: folder.path, socket: MOUNT_SOCKET, temporary, point: server.point.id },
        disks: server.disks.map(({ disk }) => disk),
      },
      options.signal,
    );
    const fileSystems = files.shown.map((each) => ({ ...each, path: join(path, each.name) }));
    return new MountedPoint(folder, server, [fish], { fileSystems, leftOut: files.leftOut });
  } catch (error) {
    if (server) await folder.clear().finally(async () => await server?.close());
    await folder.abandon();
    throw error;
  }
}

/** What shows something, until it is closed or unmounted. */
interface Shown {
  readonly ended: Promise<void>;
  close(): Promise<void>;
}

/** A point whose disks or files are shown, until it is closed or all of them are unmounted. */
class MountedPoint implements AsyncDisposable {
  readonly server: PointServer;
  readonly disks: readonly MountedDisk[];
  /** If these are shown, no disk is. */
  readonly files: MountedFiles | undefined;
  /**
   * Settles when nothing is mounted any more. Rejects with `E_NBDFUSE` if a mount ended that nobody took
   * away.
   */
  readonly ended: Promise<void>;
  readonly #folder: MountFolder;
  readonly #fuses: readonly Shown[];

  /** @internal use {@link mountPoint} */
  constructor(folder: MountFolder, server: PointServer, fuses: readonly Shown[], files?: MountedFiles) {
    this.files = files;
    this.server = server;
    this.#folder = folder;
    this.#fuses = fuses;
    this.ended = Promise.all(fuses.map(({ ended }) => ended)).then(() => undefined);
    this.ended.catch(() => undefined);
    this.disks = server.disks.map(({ uri: _, ...disk }) => ({ ...disk, path: join(folder.path, disk.disk) }));
  }

  /** Unmounts all, and removes what was made in the folder. Whoever still reads gets errors. */
  async close(): Promise<void> {
    await closeAll(...this.#fuses);
    await this.#folder.clear().finally(async () => await this.server.close());
    await this.#folder.abandon();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/**
 * Unmounts what {@link mountPoint} mounted in a folder, also if that process was killed, and removes what it
 * left.
 * @param force also where somebody uses a disk, who gets errors then
 * @returns the paths that were mounted
 * @throws {PreconditionError} `E_NOT_MOUNTED`; `E_MOUNT_BUSY`: somebody uses a disk; others are unmounted all
 *   the same; `E_MOUNT_FOLDER`: others can change the folder, so what a run left there stays
 * @throws {BackupError} `E_UNMOUNT`
 */
export async function unmountPoint(wanted: string, { force = false } = {}): Promise<string[]> {
  const path = await realpath(wanted).catch((error: unknown) => {
    if (isMissing(error)) throw notMounted(wanted);
    throw error;
  });
  const folder = (await isMounted(path)) ? resolve(path, "..") : path;
  const mounted = folder === path ? await mountsIn(path) : [path];
  const results = await Promise.allSettled(mounted.map((each) => unmount(each, { lazily: force })));
  const failed = results.find((result) => result.status === "rejected");
  if (failed) throw failed.reason;
  if (folder !== path) return mounted;
  const cleared = await clearLeft(folder, mounted).catch((error: unknown) => {
    // A folder that the mount made goes with it.
    if (isMissing(error)) return 0;
    throw error;
  });
  if (mounted.length === 0 && cleared === 0) throw notMounted(wanted);
  return mounted;
}

function notMounted(path: string): PreconditionError {
  const message = `nbdpull has mounted nothing at ${path}: findmnt -t fuse.nbdpull lists what it has`;
  return new PreconditionError("E_NOT_MOUNTED", message, { details: { path } });
}

/** @throws {PreconditionError} `E_NO_FUSE` */
async function requireFuse(): Promise<void> {
  try {
    await access("/dev/fuse", constants.R_OK | constants.W_OK);
  } catch (cause) {
    const message = isMissing(cause)
      ? "this machine has no /dev/fuse, without which no disk is shown as a file: modprobe fuse (a container: --device /dev/fuse --cap-add SYS_ADMIN), or read the point by nbdpull serve"
      : "this user may not use /dev/fuse, without which no disk is shown as a file: run this as root, or read the point by nbdpull serve";
    throw new PreconditionError("E_NO_FUSE", message, { cause });
  }
}
