import fs from "node:fs";

type Done = (error: NodeJS.ErrnoException | null) => void;
const FOLDER_ITSELF = fs.constants.O_RDONLY | fs.constants.O_DIRECTORY | fs.constants.O_NOFOLLOW;

interface LockFs {
  readonly utimes: (path: string, atime: Date, mtime: Date, done: Done) => void;
  /** The rest of `node:fs`, as it is. */
  readonly [name: string]: unknown;
}

/** For proper-lockfile, of one lock. */
interface LockFiles {
  /** Its option `fs`. */
  readonly fs: LockFs;
  /**
   * Call it before the lock is released. The library would renew a released lock once more if it is looking
   * at it just then, and throws where nobody can catch it: its folder is closed, and the descriptor another
   * file's.
   */
  readonly stopRenewing: () => void;
}

/**
 * For `fs` of proper-lockfile, whose locks are folders that it renews by their times. Others may write to the
 * folder that a lock lies in, and put a link or another name of root's file in the lock's place: only of a
 * folder that lies there itself are the times changed.
 */
export function lockFiles(): LockFiles {
  let isOver = false;
  return {
    fs: {
      ...fs,
      stat: (path: string, done: (error: NodeJS.ErrnoException | null, stats: fs.Stats) => void) => {
        fs.lstat(path, (error, stats) => {
          if (!isOver) done(error, stats);
        });
      },
      utimes,
    },
    stopRenewing: () => {
      isOver = true;
    },
  };
}

function utimes(path: string, atime: Date, mtime: Date, done: Done): void {
  fs.open(path, FOLDER_ITSELF, (failed, fd) => {
    if (failed) return done(failed);
    fs.futimes(fd, atime, mtime, (error) => fs.close(fd, () => done(error)));
  });
}
