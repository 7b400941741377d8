/**
 * Opens a file for root in folders that others can change. Whoever can change a folder on the way can put a
 * link there that leads to /etc/shadow, a pipe that never answers, or a second name of another file.
 *
 *     /var/lib/libvirt/qemu/nvram/web_VARS.fd
 *     `------------´                             root's: a link here is root's own and is followed
 *                   `---------´                  QEMU's user can change it: from here on no link is followed
 */
import { constants, type Stats } from "node:fs";
import { type FileHandle, open, readlink } from "node:fs/promises";
import { isAbsolute } from "node:path";

/** The file is not one that root may read for others; the message says why. */
class UntrustedFile extends Error {
  override readonly name = "UntrustedFile";
}

/** Opens a name without reading it, so that neither a pipe nor a device notices. Node has no name for it. */
const O_PATH = 0o10000000;
/** As many as the kernel follows. */
const MOST_LINKS = 40;
const GROUP_MAY_WRITE = 0o020;
const OTHERS_MAY_WRITE = 0o002;

/**
 * Opens the plain file at `path` for reading. Each folder on the way is held open while the next name is
 * looked up in it, so that no rename in between leads elsewhere.
 *
 * @param path absolute
 * @param owners user ids whose files are read, beside root's and those of this process' user
 * @throws {UntrustedFile} it is no plain file, another user's, has a second name, or lies behind a link that
 *   another user could have made
 * @throws the file system's error, with the place on the way in its message
 */
export async function openTrustedFile(path: string, owners: readonly number[]): Promise<FileHandle> {
  if (!isAbsolute(path)) throw new UntrustedFile("its path is not absolute");
  const names = namesIn(path);
  let links = 0;
  let isShared = false;
  let folder = await open("/", O_PATH | constants.O_DIRECTORY);
  let found: FileHandle | undefined;
  try {
    for (;;) {
      const name = names.shift();
      if (name === undefined) throw new UntrustedFile("it is no plain file");
      // Below a folder that others can change, everything may have been put there by them.
      isShared ||= othersCanChange(await folder.stat());
      const at = `/proc/self/fd/${folder.fd}/${name}`;
      found = await open(at, O_PATH | constants.O_NOFOLLOW).catch(because(name));
      const stats = await found.stat();
      if (stats.isSymbolicLink()) {
        if (isShared) throw new UntrustedFile(`${name} is a link in a folder that another user can change`);
        links += 1;
        if (links > MOST_LINKS) throw new UntrustedFile("its path leads through too many links");
        const target = await readlink(at).catch(because(name));
        names.unshift(...namesIn(target));
        await found.close();
        found = isAbsolute(target) ? await open("/", O_PATH | constants.O_DIRECTORY) : undefined;
        if (found === undefined) continue;
      } else if (names.length === 0) {
        refuseStrange(stats, isShared, owners);
        return await open(`/proc/self/fd/${found.fd}`, constants.O_RDONLY | constants.O_NONBLOCK).catch(
          because(name),
        );
      } else if (!stats.isDirectory()) {
        throw new UntrustedFile(`${name} on the way to it is no folder`);
      }
      await folder.close();
      folder = found;
      found = undefined;
    }
  } finally {
    await found?.close();
    await folder.close();
  }
}

function namesIn(path: string): string[] {
  return path.split("/").filter((name) => name !== "" && name !== ".");
}

function othersCanChange({ uid, gid, mode }: Stats): boolean {
  if (uid !== 0 && uid !== process.geteuid?.()) return true;
  return (mode & OTHERS_MAY_WRITE) !== 0 || ((mode & GROUP_MAY_WRITE) !== 0 && gid !== 0);
}

function refuseStrange(stats: Stats, isShared: boolean, owners: readonly number[]): void {
  if (!stats.isFile()) throw new UntrustedFile("it is no plain file");
  if (![0, process.geteuid?.(), ...owners].includes(stats.uid)) {
    throw new UntrustedFile(
      `it belongs to the user ${stats.uid}, who is neither root nor the user that QEMU runs as`,
    );
  }
  // Whoever can change the folder can give another file this name too, without being able to read it.
  if (isShared && stats.nlink > 1) {
    throw new UntrustedFile(
      "it has another name (a hard link), and lies in a folder that another user can change",
    );
  }
}

/** Gives an error of the file system the name that it is about, instead of a number of this process. */
function because(name: string): (error: NodeJS.ErrnoException) => never {
  return (error) => {
    const [reason = error.message] = error.message.split(", ");
    throw Object.assign(new Error(`${reason} (${name})`, { cause: error }), { code: error.code });
  };
}
