import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { anySignal } from "../../nbd/index.js";
import { BackupError, PreconditionError } from "../base/errors.js";
import { GRACE_MS, Grace } from "../base/grace.js";
import { parseJson } from "../base/json.js";
import { isDead, type SystemProcess } from "../host/process-identity.js";
import type { StoreAbilities } from "./abilities.js";
import type { Bucket } from "./bucket.js";
import {
  contentNow,
  giveBack,
  isHeldBy,
  MOST_LEASE_BYTES,
  type PutLeaseOptions,
  putLease,
} from "./lease-object.js";

/** A lease that was not renewed for so long is a dead process's. Requests are repeated for as long. */
const TERM_MS = 60_000;
/** Its holder gives up a little earlier than others take it. */
const GIVE_UP_MS = 48_000;
const RENEW_MS = 10_000;
/** How often somebody who waits looks. */
const LOOK_MS = 1_000;
/** How soon it looks again when somebody was quicker. */
const RETAKE_MS = 100;

/** The right to write below a prefix, which one process has at a time. */
export interface Lease {
  /** Aborted when it was lost: nothing may be committed then. */
  readonly lost: AbortSignal;
  /**
   * Aborted 10 s after the signal of whoever took it, if that fires: what is not done by then is left to the
   * next holder.
   */
  readonly late: AbortSignal;
  /** Aborted with either: nothing is asked of the store any more. */
  readonly over: AbortSignal;
  /** What the store does: what was said of it before, unless it took no notice of a condition just now. */
  readonly abilities: StoreAbilities;
  /**
   * Call it right before a change that others must not make at the same time.
   * @throws {BackupError} `E_LEASE_LOST`
   */
  assertHeld(): void;
  /**
   * Asks the store too. No clock of this host tells what happened while it slept, or while its virtual
   * machine was paused.
   * @throws {BackupError} `E_LEASE_LOST`
   * @throws the signal's reason when it is late
   */
  confirm(): Promise<void>;
  /** For whoever finds out otherwise that another one writes. */
  lose(cause?: unknown): void;
  release(): Promise<void>;
}

interface LeaseOptions {
  /** For messages: whose it is. */
  readonly of: string;
  /** How long to wait for another holder who lives, which is known when it is renewed. */
  readonly waitMs: number;
  /**
   * What the store was found to do once. That may have changed: versions were switched on in the bucket, or
   * all was copied to another store. So conditions are tried on the lease. Where the store can't write on
   * condition, two who take it in the same moment may both get it.
   */
  readonly abilities: StoreAbilities;
  readonly signal?: AbortSignal | undefined;
  /** How long a lease lasts that is not renewed; default 60 s. All who use a store must have the same. */
  readonly termMs?: number | undefined;
}

/**
 * Takes the lease that the object `key` stands for. It is made if it is missing and replaced if it is
 * unchanged, which a store does for one of many at a time. Time is measured by how long it stays unchanged,
 * never by comparing clocks of two hosts. One that a process of this host has left which has ended is taken
 * at once.
 * @throws {PreconditionError} `E_LOCKED`: another process has it and renews it, or the store keeps refusing
 *   it
 */
export async function takeLease(bucket: Bucket, key: string, options: LeaseOptions): Promise<Lease> {
  const termMs = options.termMs ?? TERM_MS;
  const deadline = performance.now() + options.waitMs;
  let seen: { readonly etag: string; readonly since: number } | undefined;
  let isRenewed = false;
  for (;;) {
    options.signal?.throwIfAborted();
    const now = performance.now();
    const found = await bucket.get(key, MOST_LEASE_BYTES, options);
    if (found && seen?.etag !== found.etag) {
      isRenewed = seen !== undefined;
      // Since its answer at least: how old that is which a look shows, nobody knows.
      seen = { etag: found.etag, since: performance.now() };
    }
    const isLeft = found && (await isDead(holderOf(found.bytes)));
    const isFree = !found || isLeft || (seen && now - seen.since >= termMs);
    if (isFree) {
      const taken = await HeldLease.take(bucket, key, { ...options, etag: found?.etag, termMs });
      if (taken) return taken;
      // Somebody was quicker, which the next look shows, unless the store contradicts itself.
      if (now > deadline + termMs) {
        const message = `nobody seems to be writing points of ${options.of}, and yet the store refuses the lease s3://${bucket.address.bucket}/${key} each time (were versions switched on in the bucket? Ceph refuses each If-Match there): if no nbdpull writes there on any host, remove that object and try again; if that doesn't help, something between here and the store keeps old answers`;
        throw new PreconditionError("E_LOCKED", message, { details: { of: options.of } });
      }
    } else if (now > deadline && isRenewed) {
      // One that stays as it is may have been left, which only its term shows.
      const { host = "unknown host", pid = "unknown" } = holderOf(found.bytes);
      const message = `another nbdpull is writing points of ${options.of} (${host}, process ${pid}): try again when it has ended`;
      throw new PreconditionError("E_LOCKED", message, { details: { of: options.of } });
    }
    await sleep(
      isFree ? RETAKE_MS : LOOK_MS,
      undefined,
      options.signal ? { signal: options.signal } : {},
    ).catch(() => options.signal?.throwIfAborted());
  }
}

/** What its holder has written into it; nothing of it can be relied on. */
function holderOf(bytes: Buffer): Partial<SystemProcess> {
  const { host, boot, pid, start } = (parseJson(bytes.toString("utf8")) ?? {}) as Record<string, unknown>;
  return {
    host: typeof host === "string" ? host.slice(0, 255) : "unknown host",
    ...(typeof boot === "string" ? { boot } : {}),
    ...(Number.isSafeInteger(pid) ? { pid: Number(pid) } : {}),
    ...(typeof start === "string" ? { start } : {}),
  };
}

/** What is known of a lease from the beginning. */
interface Taken {
  readonly holder: string;
  readonly etag: string;
  /** When it was asked for, in milliseconds of `performance.now`. */
  readonly at: number;
}

class HeldLease implements Lease {
  readonly #bucket: Bucket;
  readonly #key: string;
  readonly #options: PutLeaseOptions;
  /** It stands in the object, whatever else of it changes. */
  readonly #holder: string;
  readonly #lost = new AbortController();
  readonly #grace: Grace;
  readonly over: AbortSignal;
  readonly #ended = new AbortController();
  readonly #renewing: Promise<void>;
  #etag: string;
  /** When the last renewal that succeeded was sent. */
  #renewedAt: number;

  private constructor(bucket: Bucket, key: string, options: PutLeaseOptions, taken: Taken) {
    this.#bucket = bucket;
    this.#key = key;
    this.#options = options;
    this.#holder = taken.holder;
    this.#etag = taken.etag;
    this.#renewedAt = taken.at;
    this.#grace = new Grace(options.signal, GRACE_MS);
    this.over = anySignal(this.#lost.signal, this.late);
    this.#renewing = this.#renew();
  }

  /** @returns undefined if another process was quicker */
  static async take(bucket: Bucket, key: string, options: PutLeaseOptions): Promise<HeldLease | undefined> {
    const [at, holder] = [performance.now(), randomUUID()];
    try {
      const got = await putLease(bucket, key, holder, options);
      if (got === undefined) return undefined;
      const { etag, abilities } = got;
      return new HeldLease(bucket, key, { ...options, abilities }, { holder, etag, at });
    } catch (error) {
      // Otherwise others would wait for its term. Later it may be another one's by the time it is removed.
      const isNew = performance.now() - at < options.termMs / 2;
      if (isNew) await giveBack(bucket, key, holder).catch(() => undefined);
      throw error;
    }
  }

  get abilities(): StoreAbilities {
    return this.#options.abilities;
  }

  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  get late(): AbortSignal {
    return this.#grace.late;
  }

  assertHeld(): void {
    if (this.#leftMs() <= 0) this.lose();
    this.#lost.signal.throwIfAborted();
  }

  async confirm(): Promise<void> {
    this.assertHeld();
    if (!(await this.#isThere(this.over))) this.lose("another one has it");
    this.assertHeld();
  }

  async #isThere(signal: AbortSignal): Promise<boolean> {
    return await isHeldBy(this.#bucket, this.#key, this.#holder, signal);
  }

  /** How long it is surely held, in milliseconds. */
  #leftMs(): number {
    return this.#renewedAt + (this.#options.termMs * GIVE_UP_MS) / TERM_MS - performance.now();
  }

  async #renew(): Promise<void> {
    const every = (this.#options.termMs * RENEW_MS) / TERM_MS;
    const { signal } = this.#ended;
    while (!signal.aborted && !this.#lost.signal.aborted) {
      await sleep(every, undefined, { signal, ref: false }).catch(() => undefined);
      if (signal.aborted) return;
      const sentAt = performance.now();
      try {
        const inTime = AbortSignal.timeout(Math.max(0, Math.floor(this.#leftMs())));
        const etag = await this.#replace(anySignal(signal, inTime));
        if (etag === undefined) return this.lose();
        this.#etag = etag;
        this.#renewedAt = sentAt;
      } catch (cause) {
        // The store may come back in time.
        if (this.#leftMs() <= 0) this.lose(cause);
      }
    }
  }

  /** @returns the new ETag; undefined: another one has it */
  async #replace(signal: AbortSignal): Promise<string | undefined> {
    const content = await contentNow(this.#holder);
    if (this.#options.abilities.conditionalReplace) {
      return await this.#bucket.replaceIfUnchanged(this.#key, content, { etag: this.#etag, signal });
    }
    const found = await this.#bucket.find(this.#key, { signal });
    if (found?.etag !== this.#etag) return undefined;
    await this.#bucket.put(this.#key, content, { signal });
    // Another one may have put its own in between, and its ETag is not ours to go on with.
    const there = await this.#bucket.get(this.#key, MOST_LEASE_BYTES, { signal });
    return there?.bytes.equals(content) ? there.etag : undefined;
  }

  lose(cause?: unknown): void {
    const message = `the lease s3://${this.#bucket.address.bucket}/${this.#key} was lost: another process may have taken it (was this one suspended, or the store away?), so nothing more is written`;
    this.#lost.abort(new BackupError("E_LEASE_LOST", message, { cause }));
  }

  /** Gives it back if it is surely still held; otherwise it ends by itself. */
  async release(): Promise<void> {
    this.#ended.abort();
    await this.#renewing;
    using _ = this.#grace;
    const isSure = performance.now() - this.#renewedAt < this.#options.termMs / 2;
    if (!isSure || this.#lost.signal.aborted) return;
    // A request that is repeated for longer would remove the next holder's.
    const signal = anySignal(AbortSignal.timeout(Math.max(0, Math.floor(this.#leftMs()))), this.late);
    try {
      if (await this.#isThere(signal)) await this.#bucket.remove([this.#key], { signal });
    } catch {
      // It ends by itself.
    }
  }
}
