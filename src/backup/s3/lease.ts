import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { BackupError, PreconditionError } from "../base/errors.js";
import { parseJson } from "../base/json.js";
import type { Bucket } from "./bucket.js";

/** A lease that was not renewed for so long is a dead process's. */
const TERM_MS = 30_000;
/** Its holder gives up a little earlier than others take it. */
const GIVE_UP_MS = 22_000;
const RENEW_MS = 6_000;
/** How often somebody who waits looks. */
const LOOK_MS = 1_000;
const MOST_LEASE_BYTES = 4096;

/** The right to write below a prefix, which one process has at a time. */
export interface Lease {
  /** Aborted when it was lost: nothing may be committed then. */
  readonly lost: AbortSignal;
  /**
   * Call it right before a change that others must not make at the same time.
   * @throws {BackupError} `E_LEASE_LOST`
   */
  assertHeld(): void;
  release(): Promise<void>;
}

export interface LeaseOptions {
  /** For messages: whose it is. */
  readonly of: string;
  /** How long to wait for another holder who lives. */
  readonly waitMs: number;
  readonly signal?: AbortSignal | undefined;
  /** How long a lease lasts that is not renewed; default 30 s. All who use a store must have the same. */
  readonly termMs?: number | undefined;
}

/**
 * Takes the lease that the object `key` stands for. It is made if it is missing and replaced if it is unchanged,
 * which a store does for one of many at a time. Time is measured by how long it stays unchanged, never by
 * comparing clocks of two hosts.
 * @throws {PreconditionError} `E_LOCKED`: another process has it and renews it
 */
export async function takeLease(bucket: Bucket, key: string, options: LeaseOptions): Promise<Lease> {
  const termMs = options.termMs ?? TERM_MS;
  const deadline = performance.now() + options.waitMs;
  let seen: { readonly etag: string; readonly since: number } | undefined;
  for (;;) {
    options.signal?.throwIfAborted();
    const found = await bucket.get(key, MOST_LEASE_BYTES, options);
    const now = performance.now();
    if (found && seen?.etag !== found.etag) seen = { etag: found.etag, since: now };
    if (!found || (seen && now - seen.since >= termMs)) {
      const taken = await HeldLease.take(bucket, key, { etag: found?.etag, termMs });
      if (taken) return taken;
      continue;
    }
    // One that was left behind is only known after its term.
    const isDead = seen !== undefined && seen.since + termMs < deadline;
    if (now > deadline && !isDead) {
      const { host, pid } = holderOf(found.bytes);
      const message = `another nbdpull is writing points of ${options.of} (${host}, process ${pid}): try again when it has ended`;
      throw new PreconditionError("E_LOCKED", message, { details: { of: options.of } });
    }
    await sleep(LOOK_MS, undefined, options.signal ? { signal: options.signal } : {}).catch(() =>
      options.signal?.throwIfAborted(),
    );
  }
}

function holderOf(bytes: Buffer): { readonly host: string; readonly pid: string } {
  const { host, pid } = (parseJson(bytes.toString("utf8")) ?? {}) as Record<string, unknown>;
  return { host: typeof host === "string" ? host : "unknown host", pid: String(Number(pid)) };
}

class HeldLease implements Lease {
  readonly #bucket: Bucket;
  readonly #key: string;
  readonly #termMs: number;
  readonly #lost = new AbortController();
  readonly #ended = new AbortController();
  readonly #renewing: Promise<void>;
  #etag: string;
  /** When the last renewal that succeeded was sent. */
  #renewedAt: number;

  private constructor(bucket: Bucket, key: string, termMs: number, etag: string, takenAt: number) {
    this.#bucket = bucket;
    this.#key = key;
    this.#termMs = termMs;
    this.#etag = etag;
    this.#renewedAt = takenAt;
    this.#renewing = this.#renew();
  }

  /** @returns undefined if another process was quicker */
  static async take(
    bucket: Bucket,
    key: string,
    { etag, termMs }: { readonly etag: string | undefined; readonly termMs: number },
  ): Promise<HeldLease | undefined> {
    const takenAt = performance.now();
    const content = contentNow();
    if (etag !== undefined) {
      const taken = await bucket.replaceIfUnchanged(key, content, { etag });
      return taken === undefined ? undefined : new HeldLease(bucket, key, termMs, taken, takenAt);
    }
    if (!(await bucket.putIfAbsent(key, content))) return undefined;
    const made = await bucket.find(key);
    return made && new HeldLease(bucket, key, termMs, made.etag, takenAt);
  }

  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  assertHeld(): void {
    if (this.#leftMs() <= 0) this.#lose();
    this.#lost.signal.throwIfAborted();
  }

  /** How long it is surely held, in milliseconds. */
  #leftMs(): number {
    return this.#renewedAt + (this.#termMs * GIVE_UP_MS) / TERM_MS - performance.now();
  }

  async #renew(): Promise<void> {
    const every = (this.#termMs * RENEW_MS) / TERM_MS;
    const { signal } = this.#ended;
    while (!signal.aborted && !this.#lost.signal.aborted) {
      await sleep(every, undefined, { signal, ref: false }).catch(() => undefined);
      if (signal.aborted) return;
      const sentAt = performance.now();
      try {
        const inTime = AbortSignal.timeout(Math.max(0, Math.floor(this.#leftMs())));
        const etag = await this.#bucket.replaceIfUnchanged(this.#key, contentNow(), {
          etag: this.#etag,
          signal: AbortSignal.any([signal, inTime]),
        });
        if (etag === undefined) return this.#lose();
        this.#etag = etag;
        this.#renewedAt = sentAt;
      } catch (cause) {
        // The store may come back in time.
        if (this.#leftMs() <= 0) this.#lose(cause);
      }
    }
  }

  #lose(cause?: unknown): void {
    const message = `the lease s3://${this.#bucket.address.bucket}/${this.#key} was lost: another process may have taken it (was this one suspended, or the store away?), so nothing more is written`;
    this.#lost.abort(new BackupError("E_LEASE_LOST", message, { cause }));
  }

  /** Gives it back if it is surely still held; otherwise it ends by itself. */
  async release(): Promise<void> {
    this.#ended.abort();
    await this.#renewing;
    const isSure = performance.now() - this.#renewedAt < this.#termMs / 2;
    if (!isSure || this.#lost.signal.aborted) return;
    await this.#bucket.remove([this.#key]).catch(() => undefined);
  }
}

/** Another content each time, so that the ETag changes. */
function contentNow(): Buffer {
  return Buffer.from(JSON.stringify({ host: hostname(), pid: process.pid, nonce: randomUUID() }));
}
