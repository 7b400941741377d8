import { setTimeout as sleep } from "node:timers/promises";
import type { NbdClient } from "../../nbd/index.js";
import type { JobConnection } from "./job-connection.js";

/** Long enough for all replies that QEMU has promised, however slow its disks are. */
const IDLE_WITHIN_MS = 10_000;
/** For a handshake, which QEMU answers at once; then we hang up. Less than `IDLE_WITHIN_MS`. */
const HANDSHAKE_WITHIN_MS = 5000;
/** After which the line counts as dead: what we hang up then, QEMU would not hear of. */
const ANSWER_WITHIN_MS = 4500;

/**
 * This program's connections to the exports of one job. They have to outlive the job, idle:
 *
 * - QEMU 7.2 (Debian 12's 7.2.22) dies, and its guest with it, when a client leaves an export of a disk that
 *   has an iothread while the job runs: `nbd_blockdev_client_closed: Assertion … failed`.
 * - It hangs, and its guest with it, when the job is ended while a client doesn't read the replies that it
 *   asked for (`blk_exp_close_all_type` waits for them).
 * - It hangs for ever, and its guest with it, when the job is ended while a client is in its handshake
 *   (`nbd_server_free` waits for a client whose socket nobody polls).
 *
 * All were seen each time, and none with clients that were idle and left after the end of the job.
 */
export class JobClients {
  /** Receives every client that is opened to the job. */
  readonly all: NbdClient[] = [];
  /** The way to the job, if it is not that of each client alone. */
  connection: JobConnection | undefined;
  /**
   * Ends all connections at the far end of their line, on the job's own host. Undefined: there is no such
   * end, or the guest would not survive it.
   */
  severThere: (() => Promise<void>) | undefined;
  /** Clients that are being opened, and are in no list yet. */
  readonly #opening = new Set<Promise<unknown>>();
  readonly #answerWithinMs: number;

  constructor(answerWithinMs: number = ANSWER_WITHIN_MS) {
    this.#answerWithinMs = answerWithinMs;
  }

  /**
   * Takes note of a client that is being opened to the job, which must not end in the middle of its
   * handshake.
   */
  isOpening(client: Promise<unknown>): void {
    const forget = (): void => {
      this.#opening.delete(settled);
    };
    const settled: Promise<void> = client.then(forget, forget);
    this.#opening.add(settled);
  }

  /**
   * Reconnects no client any more, waits for handshakes and for the replies that are on their way, ends the
   * job by `end`, and disconnects, even if that failed. What doesn't come in time is cut off at its far end.
   * @throws what `end` throws
   */
  async outlive(end: () => Promise<void>): Promise<void> {
    try {
      for (const client of this.all) client.stopConnecting(HANDSHAKE_WITHIN_MS);
      await this.#severIfDead();
      await this.#within(HANDSHAKE_WITHIN_MS, this.#opened());
      await this.#within(IDLE_WITHIN_MS, this.#idle());
      await end();
    } finally {
      await this.disconnect();
    }
  }

  /** Only for a job that has ended, or that another program ends. */
  async disconnect(): Promise<void> {
    await Promise.allSettled(this.all.splice(0).map((client) => client.close()));
    await this.connection?.[Symbol.asyncDispose]();
    this.connection = undefined;
  }

  /** A line that carries nothing carries no hang-up either, and QEMU would wait for its client for ever. */
  async #severIfDead(): Promise<void> {
    if (!this.severThere) return;
    const settled = Promise.all([this.#opened(), this.#idle()]);
    if (await this.#within(this.#answerWithinMs, settled)) return;
    await this.#within(IDLE_WITHIN_MS, this.severThere());
  }

  /** Others may begin to open while these are waited for. */
  async #opened(): Promise<void> {
    while (this.#opening.size > 0) await Promise.all(this.#opening);
  }

  async #idle(): Promise<void> {
    await Promise.all(this.all.map((client) => client.idle()));
  }

  /** @returns whether the work has ended in that time, well or not */
  async #within(ms: number, work: Promise<unknown>): Promise<boolean> {
    const timer = new AbortController();
    const tooLate = sleep(ms, false, { signal: timer.signal }).catch(() => false);
    const ended = work.then(
      () => true,
      () => true,
    );
    const isInTime = await Promise.race([ended, tooLate]);
    timer.abort();
    return isInTime;
  }
}
