import { rmdir, stat } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { UsageError } from "../src/backup/base/errors.js";
import { makeFolders } from "../src/backup/host/durable-files.js";
import { refuseAddress } from "../src/backup/host/local-path.js";
import type { ImageFormat } from "../src/backup/image/image.js";
import type { Repository } from "../src/backup/repository/repository.js";
import { refuseInside } from "../src/backup/restore/restore.js";

/** The destination of a restore. */
export type Destination =
  | {
      readonly kind: "files";
      readonly folder: string;
      /** The folder is created if it doesn't exist. */
      readonly make: boolean;
      readonly pathOf: (disk: string) => string;
    }
  /** A block device or an NBD URI, whose content is overwritten. */
  | { readonly kind: "device" | "export"; readonly name: string; readonly disk: string };

interface DestinationOptions {
  readonly to: string;
  readonly disk?: readonly string[];
  readonly format?: ImageFormat;
  readonly force?: true;
}

/**
 * Interprets `--to`: an NBD URI, a block device, a file (with one `--disk`, unless it is an existing folder),
 * or else a folder that gets one file per disk, in the disk's original format unless the user says another.
 * @param originals by the names of the disks
 * @throws {UsageError}
 */
export async function destinationOf(
  repository: Repository,
  options: DestinationOptions,
  originals: ReadonlyMap<string, ImageFormat>,
): Promise<Destination> {
  const { to, disk: wanted, format } = options;
  if (/^nbds?(\+\w+)?:\/\//i.test(to)) return overwritten("export", options);
  await refuseAddress(to, "image");
  const found = await stat(resolve(to)).catch(() => undefined);
  if (found?.isBlockDevice()) return overwritten("device", options);
  await refuseInside(repository, to);
  if (found && !found.isDirectory() && (!found.isFile() || to.endsWith("/"))) {
    throw new UsageError("E_TARGET", `${to} is neither a file, a folder nor a block device: name one`);
  }
  const isFolder = found?.isDirectory() ?? (to.endsWith("/") || wanted?.length !== 1);
  if (!isFolder && wanted?.length !== 1) {
    throw new UsageError("E_TARGET", `${to} is a file: name a folder for all disks, or one --disk`);
  }
  if (!isFolder) return { kind: "files", folder: dirname(to), make: false, pathOf: () => to };
  return {
    kind: "files",
    folder: to,
    make: true,
    pathOf: (disk) => join(to, `${disk}.${format ?? originals.get(disk) ?? "raw"}`),
  };
}

/** These destinations always exist, so `--force` is required. */
function overwritten(kind: "device" | "export", options: DestinationOptions): Destination {
  const { to: name, disk: wanted = [], format, force } = options;
  const what = kind === "device" ? "a block device" : "an NBD export";
  const [disk, ...others] = wanted;
  if (disk === undefined || others.length > 0) {
    throw new UsageError("E_TARGET", `${name} is ${what}, which takes one disk: name it with --disk`);
  }
  if (format === "qcow2") {
    throw new UsageError("E_TARGET", `${name} is ${what}, which is written raw: leave out --format qcow2`);
  }
  if (!force) {
    const message = `${name} is ${what}: what it holds would be overwritten, and was not touched. Give --force to overwrite it`;
    throw new UsageError("E_EXISTS", message, { details: { target: name } });
  }
  return { kind, name, disk };
}

const PRIVATE = 0o700;
/** QEMU's user has to reach the disks of a domain that runs on them, but not to list the folder. */
const PASSABLE = 0o711;

/**
 * Runs `work` with an existing folder. A folder created for it is removed if `work` fails and leaves it
 * empty.
 */
export async function inFolder<T>(
  folder: string,
  { forDomain }: { readonly forDomain: boolean },
  work: () => Promise<T>,
): Promise<T> {
  const first = await makeFolders(folder, forDomain ? PASSABLE : PRIVATE);
  try {
    return await work();
  } catch (error) {
    if (first !== undefined) await removeEmpty(resolve(folder), dirname(resolve(first)));
    throw error;
  }
}

async function removeEmpty(folder: string, above: string): Promise<void> {
  for (let path = folder; path !== above; path = dirname(path)) {
    const removed = await rmdir(path).then(
      () => true,
      () => false,
    );
    if (!removed) return;
  }
}
