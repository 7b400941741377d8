import { randomUUID } from "node:crypto";
import { mkdir, readdir, rm, rmdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { lock } from "proper-lockfile";
import { BackupError, hasCode, PreconditionError } from "../base/errors.js";
import { exists, isMissing, makeFolders } from "../host/durable-files.js";

/** A dead process loses its lock after LOCK_STALE_MS; others wait a little longer for it. */
const LOCK_STALE_MS = 10_000;
const LOCK_WAIT_MS = 13_000;
const LOCK_RETRY_MS = 500;
const READER = ".reader-";
/** Prefix of the lock holder's mark. The next holder removes the mark of one that was taken for dead. */
const HOLDER = ".holder-";
/**
 * How often `assertHeld` looks: well below the time in which others get the lock, far above the cost of a
 * look.
 */
const LOOK_AGAIN_MS = 1_000;

/** The right to write a domain's points, which one process has at a time. */
export interface HeldLock {
  /** Aborted when the lock was lost, because this process was suspended or the lock was removed. */
  readonly lost: AbortSignal;
  /**
   * Must be called right before a change that could collide with another holder: after a suspension it takes
   * a moment until `lost` is aborted.
   * @throws {BackupError} the lock was lost
   */
  assertHeld(): Promise<void>;
  release(): Promise<void>;
}

/**
 * Takes the lock of a domain. A dead process loses it after some seconds. It works on network file systems.
 * @throws {PreconditionError} another process has it
 */
export async function takeLock(
  folder: string,
  domain: string,
  signal: AbortSignal | undefined,
): Promise<HeldLock> {
  const lost = new AbortController();
  const lose = (cause?: Error): void => {
    const message = `the lock on ${folder} was lost: another process may have taken it (was this one suspended?)`;
    lost.abort(new BackupError("E_LOCK_LOST", message, { cause }));
  };
  const deadline = performance.now() + LOCK_WAIT_MS;
  for (;;) {
    signal?.throwIfAborted();
    try {
      const release = await lock(folder, {
        lockfilePath: join(folder, ".lock"),
        stale: LOCK_STALE_MS,
        update: LOCK_STALE_MS / 5,
        onCompromised: lose,
      });
      const mark = await markHolder(folder).catch(async (error: unknown) => {
        await release().catch(() => undefined);
        throw error;
      });
      let looked = Date.now();
      return {
        lost: lost.signal,
        assertHeld: async () => {
          lost.signal.throwIfAborted();
          const now = Date.now();
          if (Math.abs(now - looked) < LOOK_AGAIN_MS) return;
          if (!(await exists(mark))) lose();
          lost.signal.throwIfAborted();
          looked = now;
        },
        release: async () => {
          await rmdir(mark).catch(() => undefined);
          if (!lost.signal.aborted) await release().catch(() => undefined);
        },
      };
    } catch (cause) {
      if (isMissing(cause)) {
        // Another holder's first point failed, and that holder removed the empty folder.
        await makeFolders(folder);
        continue;
      }
      if (!hasCode(cause, "ELOCKED")) throw cause;
      if (performance.now() > deadline) {
        const message = `another nbdpull is writing points of ${domain} (${folder}): try again when it has ended`;
        throw new PreconditionError("E_LOCKED", message, { cause, details: { domain } });
      }
    }
    await sleep(LOCK_RETRY_MS, undefined, signal ? { signal } : {}).catch(() => signal?.throwIfAborted());
  }
}

/** Whether a lock that was last renewed at `mtimeMs` belongs to a dead process. */
export function isLockStale(mtimeMs: number): boolean {
  return Date.now() - mtimeMs >= LOCK_STALE_MS;
}

/**
 * Replaces older marks by ours, so that an earlier holder that was only suspended notices that it lost the
 * lock.
 */
async function markHolder(folder: string): Promise<string> {
  for (const name of await readdir(folder)) {
    if (name.startsWith(HOLDER)) await rm(join(folder, name), { recursive: true, force: true });
  }
  const mark = join(folder, `${HOLDER}${randomUUID()}`);
  await mkdir(mark);
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
export async function markReader(folder: string): Promise<ReaderMark> {
  const path = join(folder, `${READER}${randomUUID()}`);
  try {
    // Each lock needs a path of its own: the library confuses two locks with the same path.
    const release = await lock(path, {
      lockfilePath: path,
      realpath: false,
      stale: LOCK_STALE_MS,
      update: LOCK_STALE_MS / 5,
      // The reader calls `isThere` at its end.
      onCompromised: () => undefined,
    });
    return { isThere: () => exists(path), release: () => release().catch(() => undefined) };
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
  folder: string,
  domain: string,
  { waitMs, signal }: { readonly waitMs: number; readonly signal?: AbortSignal | undefined },
): Promise<void> {
  const deadline = performance.now() + waitMs;
  for (;;) {
    const readers = await livingReaders(folder);
    if (readers === 0) return;
    signal?.throwIfAborted();
    if (performance.now() > deadline) {
      const message = `points of ${domain} are still being read (restore, verify or serve, ${readers} at work): prune again when that has ended; every kept point can be restored as before`;
      throw new PreconditionError("E_READERS", message, { details: { domain, readers } });
    }
    await sleep(LOCK_RETRY_MS, undefined, signal ? { signal } : {}).catch(() => signal?.throwIfAborted());
  }
}

async function livingReaders(folder: string): Promise<number> {
  let count = 0;
  for (const name of await readdir(folder)) {
    if (!name.startsWith(READER)) continue;
    const path = join(folder, name);
    const marked = await stat(path).catch(() => undefined);
    if (!marked) continue;
    if (!isLockStale(marked.mtimeMs)) count += 1;
    else await rm(path, { recursive: true, force: true });
  }
  return count;
}
