/**
 * The images of a disk whose domain is off, found link by link before anything opens them together:
 *
 *     top.qcow2 --> base.qcow2 --> (nothing)   as the definition says; if it says nothing, the headers
 *        |
 *        `--> data.raw                         a qcow2 image's external data file
 *
 * A header was written by the guest's QEMU, or by whoever made the image, so a file that only a header names
 * is opened as QEMU's user. The disk's image, which the definition names, may be root's own: libvirt gives it
 * back to root when a domain ends. Then a server that runs as the file's owner serves its bytes
 * (`ImageServer`), and QEMU's user reads those:
 *
 *     node --NBD--> qemu-nbd (QEMU's user; qcow2) --NBD--> qemu-nbd (the owner; raw) --> file
 *
 * The second one parses nothing.
 */

import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { messageOf, PreconditionError } from "../base/errors.js";
import { closeAll } from "../base/in-parallel.js";
import { ChangeablePath, unchangeablePath } from "../host/unchangeable-path.js";
import type { StatedImage, StatedLinks } from "../libvirt/documents/stated-chain.js";
import { mayRead, type ToolUser, type ToolUsers } from "./confined-tool.js";
import { asArgument, type BlockNode, type DiskFile, type ImageInfo, readInfo } from "./qemu-img.js";
import { ImageServer } from "./qemu-nbd.js";

/** More images than any chain has: they are a loop. */
const MOST_IMAGES = 200;
/** Formats that name no other files than a backing file and a data file. */
const FORMATS = ["raw", "qcow2", "qcow", "qed", "vdi", "vpc", "vhdx", "parallels", "luks"];
/** As `path_has_protocol` of QEMU says it. */
const PROTOCOL = /^[^:/]*:/;

interface StoppedDiskOptions {
  readonly users: ToolUsers | undefined;
  /** Gives a path for one more socket, in a folder that nobody but the tools can enter. */
  readonly newSocket: () => string;
  readonly signal: AbortSignal | undefined;
}

/** An image on the way down its chain. */
interface Link extends DiskFile, StatedLinks {
  /** Whether the definition names it. */
  readonly isStated: boolean;
}

/** How the bytes of a file are reached. */
interface Access {
  readonly file: BlockNode;
  readonly as: ToolUser | undefined;
  /** The folder that a tool must run in to use `file`. */
  readonly cwd: string;
  /** The open file that `file` means by {@link INHERITED}. */
  readonly handle?: FileHandle | undefined;
}

/**
 * A tool's standard input. Opening it by this name opens the same file, whatever its path leads to by then.
 */
const INHERITED = "/proc/self/fd/0";

/** Everything that is needed to serve the disk. Disposing ends the servers of root's own files. */
export class StoppedDisk implements AsyncDisposable {
  /** Bytes that the guest sees. */
  size = 0;
  /** Paths of all images and data files. */
  readonly paths: string[] = [];
  readonly #options: StoppedDiskOptions;
  readonly #top: DiskFile;
  readonly #infos: ImageInfo[] = [];
  readonly #handles: FileHandle[] = [];
  readonly #servers: ImageServer[] = [];
  #node: BlockNode = {};
  #access: Access | undefined;

  private constructor(top: DiskFile, options: StoppedDiskOptions) {
    this.#top = top;
    this.#options = options;
  }

  /**
   * Looks at every image of the chain, read-only.
   * @param stated what the definition says about what is below `image`
   * @throws {PreconditionError} `E_IMAGE_CHAIN`: a header names what the definition doesn't, and QEMU's user
   *   may not read; `E_DISK_UNFIT`, `E_IMAGE_IN_USE`, `E_NO_QEMU_TOOLS`
   * @throws {BackupError} qemu-img can't read an image; the message has its output
   */
  static async open(image: DiskFile, stated: StatedLinks, options: StoppedDiskOptions): Promise<StoppedDisk> {
    const disk = new StoppedDisk(image, options);
    try {
      await disk.#walk({ ...image, ...stated, path: resolve(image.path), isStated: true });
      return disk;
    } catch (error) {
      await disk.close();
      throw error;
    }
  }

  /** The version of the disk's image if it is qcow2: those of version 2 have no bitmaps. */
  get version(): number | undefined {
    const compat = this.#infos[0]?.["format-specific"]?.data?.compat;
    return compat === undefined ? undefined : compat === "0.10" ? 2 : 3;
  }

  /** Why an increment can't use the bitmap of that name; undefined if it can. */
  bitmapObstacle(name: string): string | undefined {
    const [top, ...below] = this.#infos;
    const flags = bitmapsOf(top).find((bitmap) => bitmap.name === name)?.flags;
    if (flags === undefined) {
      return "is not in the image (QEMU writes it only when it ends: was it killed? Or was the disk replaced, or a snapshot made since?)";
    }
    if (flags.includes("in-use")) return "is broken (did QEMU die?)";
    if (!flags.includes("auto")) return "was switched off, and has not counted what changed since";
    // The bitmap of each layer counts only the writes made while it was the top; a running QEMU merges them.
    if (below.some((each) => bitmapsOf(each).some((bitmap) => bitmap.name === name))) {
      return "is spread over the images of a backing chain, which only a running QEMU joins";
    }
    return undefined;
  }

  /**
   * Serves the disk until the server is closed. Close it before this object.
   * @throws as `ImageServer.start` does
   */
  async serve(export_: { readonly name: string; readonly bitmap: string | undefined }): Promise<ImageServer> {
    const { newSocket, signal } = this.#options;
    const { path } = this.#top;
    const { as, handle } = this.#access ?? {};
    const image = { path, node: asArgument(this.#node), as, fd: handle?.fd };
    return await ImageServer.start({ image, ...export_, socket: newSocket() }, signal);
  }

  /** @throws {BackupError} a server of root's own files has ended */
  async assertAlive(signal: AbortSignal | undefined): Promise<void> {
    for (const server of this.#servers) await server.assertAlive(signal);
  }

  async close(): Promise<void> {
    await closeAll(...this.#servers.splice(0), ...this.#handles.splice(0));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #walk(top: Link): Promise<void> {
    const layers: BlockNode[] = [];
    for (let link: Link | undefined = top; link; ) {
      if (layers.length === MOST_IMAGES) throw unfit(top.path, "its backing files form a loop");
      if (!FORMATS.includes(link.format)) {
        throw unfit(
          link.path,
          `an image of format ${link.format} can name further files, which could be anything`,
          `convert it once (qemu-img convert -O qcow2)`,
        );
      }
      const isTop = link === top;
      const access = await this.#reach(link, isTop ? (link.format === "raw" ? "whole" : "file") : "below");
      if (isTop) this.#access = access;
      const { as, cwd, handle } = access;
      const { signal } = this.#options;
      const info = await readInfo(link, access.file, { as, cwd, fd: handle?.fd, signal });
      if (isTop) this.size = info["virtual-size"];
      if (info.encrypted || link.format === "luks") {
        throw unfit(link.path, "it is encrypted, and only its domain's QEMU has the key");
      }
      this.#infos.push(info);
      layers.push({ driver: link.format, file: access.file, ...(await this.#dataOf(link, info)) });
      link = nextLink(link, info);
    }
    this.#node =
      layers.reduceRight<BlockNode | null>(
        // The raw driver knows no backing file.
        (below, layer) => (layer["driver"] === "raw" ? layer : { ...layer, backing: below }),
        null,
      ) ?? {};
  }

  /** The option that names an image's external data file, if it has one. */
  async #dataOf(link: Link, info: ImageInfo): Promise<{ "data-file"?: BlockNode }> {
    const named = info["format-specific"]?.data?.["data-file"];
    if (named === undefined) return {};
    const path = link.dataFile === undefined ? besideOf(link, named, "data file") : resolve(link.dataFile);
    const isStated = link.dataFile !== undefined;
    // Where root is QEMU's user, "what it may read" would be everything.
    const onlyStated = link.backing !== undefined && this.#options.users?.qemu.uid === 0;
    if (onlyStated && !isStated) throw notAllowed(link.path, path);
    const access = await this.#reach({ path, kind: kindOf(path), format: "raw", isStated }, "file");
    return { "data-file": access.file };
  }

  /** @param use `whole`: nothing but these bytes is served, so the owner of the file can do that at once */
  async #reach(
    file: DiskFile & { readonly isStated: boolean },
    use: "whole" | "file" | "below",
  ): Promise<Access> {
    const { users, newSocket, signal } = this.#options;
    const { path, kind, isStated } = file;
    this.paths.push(path);
    const locked = use === "below" ? plainFile(kind, path) : lockedFile(file, path);
    const direct = { file: locked, as: users?.qemu, cwd: "/" };
    if (!users || (await mayRead(users.qemu, path, kind))) return direct;
    if (!isStated) throw notAllowed(this.#top.path, path);
    // QEMU opens a backing file that is no file by the name in the header, whatever it is told.
    if (use === "below") throw unreadable(path, users.qemu);
    const { handle, uid } = await this.#openAsRoot(path, kind);
    const as: ToolUser = { uid, gid: users.group, groups: [] };
    const inherited = lockedFile({ kind, format: "raw" }, INHERITED);
    if (use === "whole") return { file: inherited, as, handle, cwd: "/" };
    const node = asArgument({ driver: "raw", file: inherited });
    const image = { path, node, as, fd: handle.fd };
    const socket = newSocket();
    const server = await ImageServer.start({ image, name: "", bitmap: undefined, socket }, signal);
    this.#servers.push(server);
    return { file: server.node, as: users.qemu, cwd: dirname(socket) };
  }

  async #openAsRoot(path: string, kind: DiskFile["kind"]): Promise<{ handle: FileHandle; uid: number }> {
    const { O_RDONLY, O_NONBLOCK, O_NOFOLLOW } = constants;
    try {
      const handle = await open(await unchangeablePath(path), O_RDONLY | O_NONBLOCK | O_NOFOLLOW);
      this.#handles.push(handle);
      const found = await handle.stat();
      if (kind === "file" ? found.isFile() : found.isBlockDevice()) return { handle, uid: found.uid };
    } catch (error) {
      if (!(error instanceof ChangeablePath)) throw unfit(path, messageOf(error));
      const message = `${path} can't be read by QEMU's user, and root doesn't read it either: another user can change ${error.folder}, and put any file there. Let QEMU's user read the image, or give ${error.folder} to root`;
      throw new PreconditionError("E_IMAGE_CHAIN", message, { details: { path, folder: error.folder } });
    }
    throw unfit(path, `it is no ${kind === "file" ? "plain file" : "block device"}`);
  }
}

/**
 * The image below: the definition's, as its QEMU would open it, or the header's if the definition says
 * nothing.
 */
function nextLink(link: Link, info: ImageInfo): Link | undefined {
  if (link.backing) return statedLink(link, link.backing);
  const { "backing-filename": named, "backing-filename-format": format } = info;
  if (named === undefined) return undefined;
  const path = besideOf(link, named, "backing file");
  if (link.backing === null) throw notStated(link.path, path);
  if (format === undefined) {
    const reason =
      "it names a backing file without its format, which could be anything: qemu-img rebase -u -F FORMAT";
    throw unfit(link.path, reason);
  }
  return { path, kind: kindOf(path), format, isStated: false, dataFile: undefined, backing: undefined };
}

function statedLink(link: Link, stated: StatedImage): Link {
  const { type, path, format = "raw" } = stated;
  if (path !== undefined && (type === "file" || type === "block")) {
    return { ...stated, kind: type, path: resolve(path), format, isStated: true };
  }
  throw unfit(link.path, `its backing file is of type ${type}`);
}

/** A header doesn't tell which of the two it names. */
function kindOf(path: string): DiskFile["kind"] {
  return path.startsWith("/dev/") ? "block" : "file";
}

/** The path of a file that a header names: relative names count from the image's folder. */
function besideOf(link: DiskFile, named: string, what: string): string {
  if (!PROTOCOL.test(named)) return resolve(dirname(link.path), named);
  const reason = `it names ${JSON.stringify(named)} as its ${what}, which is no plain file name`;
  // What the definition states is taken in its place.
  const way =
    what === "backing file" ? "state its backing file in the definition (<backingStore>)" : undefined;
  throw unfit(link.path, reason, way);
}

/**
 * QEMU's format drivers lock the file that they read against writers. The raw driver does not, so the
 * blkdebug driver takes that lock for it: no other driver can be told to.
 */
function lockedFile({ kind, format }: Pick<DiskFile, "kind" | "format">, filename: string): BlockNode {
  const file = plainFile(kind, filename);
  if (format !== "raw") return file;
  return { driver: "blkdebug", image: file, "unshare-child-perms": ["write", "resize"] };
}

function plainFile(kind: DiskFile["kind"], filename: string): BlockNode {
  return { driver: kind === "block" ? "host_device" : "file", filename };
}

function bitmapsOf(
  image: ImageInfo | undefined,
): readonly { readonly name: string; readonly flags: readonly string[] }[] {
  return image?.["format-specific"]?.data?.bitmaps ?? [];
}

/** @param way what lets the image be read, if more than a start of the domain does */
function unfit(path: string, reason: string, way?: string): PreconditionError {
  const ways = [
    "start the domain",
    ...(way === undefined ? [] : [way]),
    "or leave the disk out with --exclude",
  ];
  const message = `${path} can't be backed up while its domain is off: ${reason}. ${ways.join(", ").replace(/^s/, "S")}`;
  return new PreconditionError("E_DISK_UNFIT", message, { details: { path } });
}

function unreadable(path: string, { uid }: ToolUser): PreconditionError {
  const message = `QEMU's user (${uid}) can't read ${path}, a backing file, while its domain is off: let it (setfacl -m u:${uid}:r, and x on the folders), or start the domain`;
  return new PreconditionError("E_IMAGE_CHAIN", message, { details: { path, uid } });
}

function notAllowed(image: string, path: string): PreconditionError {
  const message = `the header of ${image}, or of an image below it, names ${path}, which the domain's definition doesn't, and which QEMU's user may not read: it was not opened. If it belongs there, let QEMU's user read it; if it does not, somebody wants to read it`;
  return new PreconditionError("E_IMAGE_CHAIN", message, { details: { path: image, names: path } });
}

function notStated(image: string, path: string): PreconditionError {
  const message = `the header of ${image} names the backing file ${path}, and the domain's definition says that there is none (<backingStore/>): it was not opened. Correct the definition (virsh edit), or the header (qemu-img rebase -u -b "")`;
  return new PreconditionError("E_IMAGE_CHAIN", message, { details: { path: image, names: path } });
}
