import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { anySignal } from "../../nbd/index.js";
import { BackupError, hasCode, PreconditionError } from "../base/errors.js";
import { parseJson } from "../base/json.js";
import { isDead, type SystemProcess, thisSystemProcess } from "../host/process-identity.js";
import type { Bucket } from "./bucket.js";
import type { StoreAbilities } from "./probe.js";

/** A lease that was not renewed for so long is a dead process's. Requests are repeated for as long. */
const TERM_MS = 60_000;
/** Its holder gives up a little earlier than others take it. */
const GIVE_UP_MS = 48_000;
const RENEW_MS = 10_000;
/** How often somebody who waits looks. */
const LOOK_MS = 1_000;
/** How soon it looks again when somebody was quicker. */
const RETAKE_MS = 100;
/**
 * Without conditions: the part of the term after which a new lease is looked at, to see whether it is still
 * there.
 */
const SETTLE = 1 / 30;
const MOST_LEASE_BYTES = 4096;
/** How long a lease is given back that was taken in vain: the store may be silent. */
const CLEAR_MS = 5_000;
/** No object has this ETag. */
const NOBODYS = "0".repeat(32);

/** The right to write below a prefix, which one process has at a time. */
export interface Lease {
  /** Aborted when it was lost: nothing may be committed then. */
  readonly lost: AbortSignal;
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
   */
  confirm(): Promise<void>;
  /** Whoever finds out otherwise that another one writes. */
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
   * all was copied to another store. So conditions that can't hold are tried on the lease. Where the store
   * can't write on condition, two who take it in the same moment may both get it.
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
    const found = await bucket.get(key, MOST_LEASE_BYTES, options);
    const now = performance.now();
    if (found && seen?.etag !== found.etag) {
      isRenewed = seen !== undefined;
      seen = { etag: found.etag, since: now };
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

interface TakeOptions extends Pick<LeaseOptions, "abilities" | "signal"> {
  /** Of the lease that is taken over; undefined: there is none. */
  readonly etag: string | undefined;
  readonly termMs: number;
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
  readonly #options: TakeOptions;
  /** It stands in the object, whatever else of it changes. */
  readonly #holder: string;
  readonly #lost = new AbortController();
  readonly #ended = new AbortController();
  readonly #renewing: Promise<void>;
  #etag: string;
  /** When the last renewal that succeeded was sent. */
  #renewedAt: number;

  private constructor(bucket: Bucket, key: string, options: TakeOptions, taken: Taken) {
    this.#bucket = bucket;
    this.#key = key;
    this.#options = options;
    this.#holder = taken.holder;
    this.#etag = taken.etag;
    this.#renewedAt = taken.at;
    this.#renewing = this.#renew();
  }

  /** @returns undefined if another process was quicker */
  static async take(bucket: Bucket, key: string, options: TakeOptions): Promise<HeldLease | undefined> {
    const [at, holder] = [performance.now(), randomUUID()];
    try {
      const got = await takeNow(bucket, key, holder, options);
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

  assertHeld(): void {
    if (this.#leftMs() <= 0) this.lose();
    this.#lost.signal.throwIfAborted();
  }

  async confirm(): Promise<void> {
    this.assertHeld();
    if (!(await this.#isThere(this.#lost.signal))) this.lose("another one has it");
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
    const isSure = performance.now() - this.#renewedAt < this.#options.termMs / 2;
    if (!isSure || this.#lost.signal.aborted) return;
    // A request that is repeated for longer would remove the next holder's.
    const signal = AbortSignal.timeout(Math.max(0, Math.floor(this.#leftMs())));
    try {
      if (await this.#isThere(signal)) await this.#bucket.remove([this.#key], { signal });
    } catch {
      // It ends by itself.
    }
  }
}

/** A lease as it was taken, and what the store did meanwhile. */
interface Got {
  readonly etag: string;
  readonly abilities: StoreAbilities;
}

/** @returns undefined if another process was quicker */
async function takeNow(
  bucket: Bucket,
  key: string,
  holder: string,
  { etag, abilities, signal, termMs }: TakeOptions,
): Promise<Got | undefined> {
  let found = abilities;
  let content = await contentNow(holder);
  if (keepsAll(abilities)) {
    const taken = await unlessLacking(() => takeOnCondition(bucket, key, content, { etag, signal }));
    if (taken === undefined) return undefined;
    if (taken === LACKS) await bucket.put(key, content, { signal });
    const trial = await tryConditions(bucket, key, holder, signal);
    if (taken !== LACKS && keepsAll(trial.abilities)) return { etag: taken, abilities };
    found = trial.abilities;
    content = trial.content ?? content;
  } else {
    await bucket.put(key, content, { signal });
    if (abilities.conditionalCreate || abilities.conditionalReplace) {
      const trial = await tryConditions(bucket, key, holder, signal);
      found = bothKeep(abilities, trial.abilities);
      content = trial.content ?? content;
    }
  }
  await sleep(termMs * SETTLE);
  const there = await bucket.get(key, MOST_LEASE_BYTES, { signal });
  return there?.bytes.equals(content) ? { etag: there.etag, abilities: found } : undefined;
}

function bothKeep(one: StoreAbilities, other: StoreAbilities): StoreAbilities {
  return {
    conditionalCreate: one.conditionalCreate && other.conditionalCreate,
    conditionalReplace: one.conditionalReplace && other.conditionalReplace,
  };
}

function keepsAll({ conditionalCreate, conditionalReplace }: StoreAbilities): boolean {
  return conditionalCreate && conditionalReplace;
}

/**
 * Tries on a lease that is held what the store does with conditions that can't hold.
 * @returns what lies in the lease since, if that was replaced
 */
async function tryConditions(
  bucket: Bucket,
  key: string,
  holder: string,
  signal: AbortSignal | undefined,
): Promise<{ readonly abilities: StoreAbilities; readonly content: Buffer | undefined }> {
  let content: Buffer | undefined;
  // Another content each time: one that is there already would look like a success.
  const replace = async (etag: string): Promise<string | undefined | typeof LACKS> => {
    const next = await contentNow(holder);
    const done = await unlessLacking(() => bucket.replaceIfUnchanged(key, next, { etag, signal }));
    if (typeof done === "string") content = next;
    return done;
  };
  const first = await contentNow(holder);
  const created = await unlessLacking(() => bucket.putIfAbsent(key, first, { signal }));
  if (created === true) content = first;
  let conditionalReplace = (await replace(NOBODYS)) === undefined;
  // Ceph refuses each If-Match in a bucket with versions, and takes no notice of If-None-Match there.
  if (created !== false && conditionalReplace) {
    const there = await bucket.get(key, MOST_LEASE_BYTES, { signal });
    const isOurs = there !== undefined && holderIn(there.bytes) === holder;
    conditionalReplace = isOurs && typeof (await replace(there.etag)) === "string";
  }
  return { abilities: { conditionalCreate: created === false, conditionalReplace }, content };
}

const LACKS = Symbol("the store does not know the condition");

async function unlessLacking<T>(request: () => Promise<T>): Promise<T | typeof LACKS> {
  try {
    return await request();
  } catch (error) {
    if (hasCode(error, "E_S3_LACKS")) return LACKS;
    throw error;
  }
}

async function isHeldBy(bucket: Bucket, key: string, holder: string, signal: AbortSignal): Promise<boolean> {
  const found = await bucket.get(key, MOST_LEASE_BYTES, { signal });
  return found !== undefined && holderIn(found.bytes) === holder;
}

function holderIn(content: Buffer): unknown {
  return ((parseJson(content.toString("utf8")) ?? {}) as Record<string, unknown>)["holder"];
}

/** Removes a lease that was perhaps taken. */
async function giveBack(bucket: Bucket, key: string, holder: string): Promise<void> {
  const signal = AbortSignal.timeout(CLEAR_MS);
  if (await isHeldBy(bucket, key, holder, signal)) await bucket.remove([key], { signal });
}

/** @returns the ETag of the lease; undefined: another process was quicker */
async function takeOnCondition(
  bucket: Bucket,
  key: string,
  content: Buffer,
  { etag, signal }: Pick<TakeOptions, "etag" | "signal">,
): Promise<string | undefined> {
  if (etag !== undefined) return await bucket.replaceIfUnchanged(key, content, { etag, signal });
  if (!(await bucket.putIfAbsent(key, content, { signal }))) return undefined;
  const made = await bucket.get(key, MOST_LEASE_BYTES, { signal });
  return made?.bytes.equals(content) ? made.etag : undefined;
}

/** Another content each time, so that the ETag changes. */
async function contentNow(holder: string): Promise<Buffer> {
  const process = { ...(await thisSystemProcess()), holder };
  return Buffer.from(JSON.stringify({ ...process, nonce: randomUUID() }));
}
