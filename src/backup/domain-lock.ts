import { randomUUID } from "node:crypto";
import { readdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { lock } from "proper-lockfile";
import { BackupError, PreconditionError } from "./errors.js";
import { isMissing, makeFolders } from "./files.js";

/** A dead process loses its lock after this long; who comes while it is held waits a little longer. */
const LOCK_STALE_MS = 10_000;
const LOCK_WAIT_MS = 13_000;
const LOCK_RETRY_MS = 500;
const READER = ".reader-";

/** The right to write a domain's points, which one process has at a time. */
export interface HeldLock {
  /** Aborted when the lock was lost: the process was suspended, or somebody removed it. */
  readonly lost: AbortSignal;
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
  const deadline = performance.now() + LOCK_WAIT_MS;
  for (;;) {
    signal?.throwIfAborted();
    try {
      const release = await lock(folder, {
        lockfilePath: join(folder, ".lock"),
        stale: LOCK_STALE_MS,
        update: LOCK_STALE_MS / 5,
        onCompromised: (cause) => {
          const message = `the lock on ${folder} was lost: another process may have taken it (was this one suspended?)`;
          lost.abort(new BackupError("E_LOCK_LOST", message, { cause }));
        },
      });
      return {
        lost: lost.signal,
        release: async () => {
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

/** Somebody who reads a domain's points, and for whom `waitForReaders` waits. */
export interface ReaderMark {
  release(): Promise<void>;
}

/**
 * Marks the domain as being read. Where nothing can be written it isn't marked: who may not write to a repository
 * still may read it.
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
      // Whoever did not wait for this reader will be found out by the digests.
      onCompromised: () => undefined,
    });
    return { release: () => release().catch(() => undefined) };
  } catch (error) {
    const readOnly = ["EACCES", "EPERM", "EROFS"].some((code) => hasCode(error, code));
    if (!readOnly && !isMissing(error)) throw error;
    return { release: async () => undefined };
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
    if (Date.now() - marked.mtimeMs < LOCK_STALE_MS) count += 1;
    else await rm(path, { recursive: true, force: true });
  }
  return count;
}

function hasCode(error: unknown, code: string): boolean {
  return (error as NodeJS.ErrnoException).code === code;
}
