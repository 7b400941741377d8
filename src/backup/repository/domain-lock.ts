import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { lock } from "proper-lockfile";
import { BackupError, DamageError, hasCode, PreconditionError } from "../base/errors.js";
import { isMissing } from "../host/durable-files.js";
import type { HeldFolder } from "../host/held-folder.js";
import { lockFiles } from "../host/lock-fs.js";

/** A dead process loses its lock after LOCK_STALE_MS; others wait a little longer for it. */
const LOCK_STALE_MS = 10_000;
const LOCK_WAIT_MS = 13_000;
const LOCK_RETRY_MS = 500;
const LOCK = ".lock";
const READER = ".reader-";
/** Prefix of the lock holder's mark. The next holder removes the mark of one that was taken for dead. */
const HOLDER = ".holder-";
/**
 * How often `assertHeld` looks: well below the time in which others get the lock, far above the cost of a
 * look.
 */
const LOOK_AGAIN_MS = 1_000;

/** How long who removes points waits for their readers before it gives up. */
export const READERS_WAIT_MS = 60_000;
/** How long new readers are held up while it waits for those who began before its journal was written. */
export const LAST_READERS_WAIT_MS = 3_000;

/** The right to write a domain's points, which one process has at a time. */
export interface HeldLock {
  /** The domain's folder; open until `release`. */
  readonly folder: HeldFolder;
  /** Aborted when the lock was lost, because this process was suspended or the lock was removed. */
  readonly lost: AbortSignal;
  /**
   * Must be called right before a change that could collide with another holder: after a suspension it takes
   * a moment until `lost` is aborted.
   * @throws {BackupError} the lock was lost
   */
  assertHeld(): Promise<void>;
  /** @internal For threads, which can't call `assertHeld`. */
  readonly mark: HolderMark;
  release(): Promise<void>;
}

/** What is removed when somebody else takes the lock. */
export interface HolderMark {
  /** Valid as long as the lock's folder is open. */
  readonly path: string;
  /** Who writes looks for it again after so many milliseconds. */
  readonly lookAgainMs: number;
}

/**
 * Takes the lock of a domain. A dead process loses it after some seconds. It works on network file systems.
 * @param hold opens the domain's folder, and creates it if it is missing. The lock closes it.
 * @throws {PreconditionError} another process has it
 * @throws {DamageError} `E_LINK`: something that is no lock is in its place
 */
export async function takeLock(
  hold: () => Promise<HeldFolder>,
  domain: string,
  signal: AbortSignal | undefined,
): Promise<HeldLock> {
  const deadline = performance.now() + LOCK_WAIT_MS;
  const watch = new Watch();
  for (;;) {
    signal?.throwIfAborted();
    const folder = await hold();
    try {
      return await lockFolder(folder);
    } catch (cause) {
      const left = hasCode(cause, "ELOCKED") ? await folder.find(LOCK).catch(() => undefined) : undefined;
      const isLeft = left !== undefined && isAhead(left.mtimeMs) && watch.isDead(LOCK, left.mtimeMs);
      const isRemoved = isLeft && (await removeLock(folder, left.mtimeMs));
      await folder.close();
      if (isRemoved) continue;
      // Another holder's first point failed, and that holder removed the empty folder.
      if (isMissing(cause)) continue;
      if (hasCode(cause, "ENOTDIR") || hasCode(cause, "ENOTEMPTY")) throw strangeLock(folder, cause);
      if (!hasCode(cause, "ELOCKED")) throw cause;
      if (performance.now() > deadline) {
        const message = `another nbdpull is writing points of ${domain} (${folder.path}): try again when it has ended`;
        throw new PreconditionError("E_LOCKED", message, { cause, details: { domain } });
      }
    }
    await sleep(LOCK_RETRY_MS, undefined, signal ? { signal } : {}).catch(() => signal?.throwIfAborted());
  }
}

/** Removes a lock, unless another process that waits has put its own there since, or it is none. */
async function removeLock(folder: HeldFolder, mtimeMs: number): Promise<boolean> {
  if ((await folder.find(LOCK))?.mtimeMs !== mtimeMs) return false;
  return await folder.removeEmpty(LOCK).then(
    () => true,
    () => false,
  );
}

/** A lock is an empty folder. */
function strangeLock(folder: HeldFolder, cause: unknown): DamageError {
  const path = `${folder.path}/${LOCK}`;
  const message = `${path} is no lock of this program's, and was not touched: see who made it, and remove it`;
  return new DamageError("E_LINK", message, { cause, details: { path } });
}

async function lockFolder(folder: HeldFolder): Promise<HeldLock> {
  const lost = new AbortController();
  const lose = (cause?: Error): void => {
    const message = `the lock on ${folder.path} was lost: another process may have taken it (was this one suspended?)`;
    lost.abort(new BackupError("E_LOCK_LOST", message, { cause }));
  };
  const { dev, ino } = await folder.status();
  // The library confuses two locks of one process that have the same first argument.
  const { fs, stopRenewing } = lockFiles();
  const unlock = await lock(`${dev}:${ino}`, {
    lockfilePath: folder.at(LOCK),
    realpath: false,
    fs,
    stale: LOCK_STALE_MS,
    update: LOCK_STALE_MS / 5,
    onCompromised: lose,
  });
  const release = (): Promise<void> => {
    stopRenewing();
    return unlock().catch(() => undefined);
  };
  const mark = await markHolder(folder).catch(async (error: unknown) => {
    await release();
    throw error;
  });
  let looked = Date.now();
  return {
    folder,
    lost: lost.signal,
    mark: { path: folder.at(mark), lookAgainMs: LOOK_AGAIN_MS },
    assertHeld: async () => {
      lost.signal.throwIfAborted();
      const now = Date.now();
      if (Math.abs(now - looked) < LOOK_AGAIN_MS) return;
      if (!(await folder.find(mark))) lose();
      lost.signal.throwIfAborted();
      looked = now;
    },
    release: async () => {
      // Whoever takes the lock removes the mark, and then the lock is no longer ours to remove.
      const isTaken = await folder.removeEmpty(mark).then(() => false, isMissing);
      if (isTaken || lost.signal.aborted) stopRenewing();
      else await release();
      await folder.close();
    },
  };
}

/** The state of a domain's lock; undefined if it has none. */
export async function lookAtLock(folder: HeldFolder): Promise<"held" | "left by a dead process" | undefined> {
  const found = await folder.find(LOCK);
  if (!found) return undefined;
  return isLockStale(found.mtimeMs) ? "left by a dead process" : "held";
}

/** Whether a lock that was last renewed at `mtimeMs` belongs to a dead process. */
function isLockStale(mtimeMs: number): boolean {
  return Date.now() - mtimeMs >= LOCK_STALE_MS;
}

/** Whether it was renewed later than now, as if by a process whose clock was ahead. */
function isAhead(mtimeMs: number): boolean {
  return mtimeMs > Date.now() + LOCK_STALE_MS;
}

/**
 * Tells the locks and marks of dead processes from others. Where a clock was ahead when a process died, its
 * mark is of the future, and would seem to be renewed until then. So it counts as left if it isn't renewed
 * while this looks on.
 */
class Watch {
  readonly #seen = new Map<string, { readonly mtimeMs: number; readonly since: number }>();

  isDead(name: string, mtimeMs: number): boolean {
    if (!isAhead(mtimeMs)) return isLockStale(mtimeMs);
    const seen = this.#seen.get(name);
    if (seen?.mtimeMs === mtimeMs) return performance.now() - seen.since >= LOCK_STALE_MS;
    this.#seen.set(name, { mtimeMs, since: performance.now() });
    return false;
  }
}

/**
 * Replaces older marks by ours, so that an earlier holder that was only suspended notices that it lost the
 * lock.
 * @returns the mark's name
 */
async function markHolder(folder: HeldFolder): Promise<string> {
  for (const name of await folder.names()) {
    if (name.startsWith(HOLDER)) await folder.remove(name);
  }
  const mark = `${HOLDER}${randomUUID()}`;
  await folder.makeFolder(mark);
  return mark;
}

/** The mark of a process that reads a domain's points; `waitForReaders` waits for it. */
export interface ReaderMark {
  /**
   * False if the mark could not be made or was removed as a dead process's; then a prune may not have waited.
   */
  isThere(): Promise<boolean>;
  release(): Promise<void>;
}

/**
 * Marks the domain as being read. If nothing can be written there (no permission, read-only, full) there is
 * no mark, and the repository can be read all the same.
 */
export async function markReader(folder: HeldFolder): Promise<ReaderMark> {
  const name = `${READER}${randomUUID()}`;
  try {
    const { fs, stopRenewing } = lockFiles();
    const release = await lock(name, {
      lockfilePath: folder.at(name),
      realpath: false,
      fs,
      stale: LOCK_STALE_MS,
      update: LOCK_STALE_MS / 5,
      // The reader calls `isThere` at its end.
      onCompromised: () => undefined,
    });
    return {
      isThere: async () => (await folder.find(name)) !== undefined,
      release: () => {
        stopRenewing();
        return release().catch(() => undefined);
      },
    };
  } catch (error) {
    const cannotWrite = ["EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT"];
    if (!cannotWrite.some((code) => hasCode(error, code)) && !isMissing(error)) throw error;
    return { isThere: async () => false, release: async () => undefined };
  }
}

/**
 * Waits until no process reads the domain. Removes the marks of dead processes.
 * @throws {PreconditionError} a process still reads after `waitMs`
 * @throws the signal's reason
 */
export async function waitForReaders(
  folder: HeldFolder,
  domain: string,
  { waitMs, signal }: { readonly waitMs: number; readonly signal?: AbortSignal | undefined },
): Promise<void> {
  const deadline = performance.now() + waitMs;
  const watch = new Watch();
  for (;;) {
    const readers = await livingReaders(folder, watch);
    if (readers === 0) return;
    signal?.throwIfAborted();
    if (performance.now() > deadline) {
      const message = `points of ${domain} are still being read (restore, verify or serve, ${readers} at work): prune again when that has ended; every kept point can be restored as before`;
      throw new PreconditionError("E_READERS", message, { details: { domain, readers } });
    }
    await sleep(LOCK_RETRY_MS, undefined, signal ? { signal } : {}).catch(() => signal?.throwIfAborted());
  }
}

async function livingReaders(folder: HeldFolder, watch: Watch): Promise<number> {
  let count = 0;
  for (const name of await folder.names()) {
    if (!name.startsWith(READER)) continue;
    const marked = await folder.find(name);
    if (!marked) continue;
    if (watch.isDead(name, marked.mtimeMs)) await folder.remove(name);
    else count += 1;
  }
  return count;
}
