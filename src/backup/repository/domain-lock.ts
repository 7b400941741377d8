import { randomUUID } from "node:crypto";
import { mkdir, readdir, rm, rmdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { lock } from "proper-lockfile";
import { BackupError, PreconditionError } from "../base/errors.js";
import { exists, isMissing, makeFolders } from "../host/durable-files.js";

/** A dead process loses its lock after this long; who comes while it is held waits a little longer. */
const LOCK_STALE_MS = 10_000;
const LOCK_WAIT_MS = 13_000;
const LOCK_RETRY_MS = 500;
const READER = ".reader-";
/** Who has the lock; the next one to get it takes the mark of a predecessor that was thought dead away. */
const HOLDER = ".holder-";
/** Well below what it takes others to get the lock, and far above what a look costs. */
const LOOK_AGAIN_MS = 1_000;

/** The right to write a domain's points, which one process has at a time. */
export interface HeldLock {
  /** Aborted when the lock was lost: the process was suspended, or somebody removed it. */
  readonly lost: AbortSignal;
  /**
   * To be asked right before something is changed that another holder may be changing: after a suspension `lost`
   * takes a moment to know.
   * @throws {BackupError} the lock was lost
   */
  assertHeld(): Promise<void>;
  release(): Promise<void>;
}

/**
 * A lock that a dead process loses after some seconds, and that works on network file systems.
 * @throws {PreconditionError} somebody else has it
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
        // The holder's first point failed, and it took the empty folder away.
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

/** Whether a lock whose time was last renewed then is a dead process's. */
export function isLockStale(mtimeMs: number): boolean {
  return Date.now() - mtimeMs >= LOCK_STALE_MS;
}

/** From here on a holder before us, who may only have been suspended, finds out that it is none any more. */
async function markHolder(folder: string): Promise<string> {
  for (const name of await readdir(folder)) {
    if (name.startsWith(HOLDER)) await rm(join(folder, name), { recursive: true, force: true });
  }
  const mark = join(folder, `${HOLDER}${randomUUID()}`);
  await mkdir(mark);
  return mark;
}

/** Somebody who reads a domain's points, and for whom `waitForReaders` waits. */
export interface ReaderMark {
  /** False where it could not be made, or was taken for a dead process's: nobody has waited for us. */
  isThere(): Promise<boolean>;
  release(): Promise<void>;
}

/**
 * Marks the domain as being read. Where nothing can be written, or nothing more, it isn't marked: the repository can
 * be read all the same.
 */
export async function markReader(folder: string): Promise<ReaderMark> {
  const path = join(folder, `${READER}${randomUUID()}`);
  try {
    // By its own path: two locks that the library knows by the same one would end each other.
    const release = await lock(path, {
      lockfilePath: path,
      realpath: false,
      stale: LOCK_STALE_MS,
      update: LOCK_STALE_MS / 5,
      // Who reads asks at the end.
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
 * Waits until nobody reads the domain; marks of dead processes are removed.
 * @throws {PreconditionError} somebody still reads after `waitMs`
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

function hasCode(error: unknown, code: string): boolean {
  return (error as NodeJS.ErrnoException).code === code;
}
