import fs from "node:fs";

type Done = (error: NodeJS.ErrnoException | null) => void;
const FOLDER_ITSELF = fs.constants.O_RDONLY | fs.constants.O_DIRECTORY | fs.constants.O_NOFOLLOW;

interface LockFs {
  readonly utimes: (path: string, atime: Date, mtime: Date, done: Done) => void;
  /** The rest of `node:fs`, as it is. */
  readonly [name: string]: unknown;
}

/**
 * For `fs` of proper-lockfile, whose locks are folders that it renews by their times. Others may write to the
 * folder that a lock lies in, and put a link or another name of root's file in the lock's place: only of a folder
 * that lies there itself are the times changed.
 */
export const LOCK_FS: LockFs = {
  ...fs,
  stat: fs.lstat,
  utimes: (path, atime, mtime, done) => {
    fs.open(path, FOLDER_ITSELF, (failed, fd) => {
      if (failed) return done(failed);
      fs.futimes(fd, atime, mtime, (error) => fs.close(fd, () => done(error)));
    });
  },
};
