/** The object that a lease is: what lies in it, and how one of many puts it there. */
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { parseJson } from "../base/json.js";
import { thisSystemProcess } from "../host/process-identity.js";
import { bothKeep, keepsAll, LACKS, type StoreAbilities, unlessLacking } from "./abilities.js";
import type { AskOptions } from "./asker.js";
import type { Bucket } from "./bucket.js";

export const MOST_LEASE_BYTES = 4096;
/**
 * Without conditions: the part of the term after which a new lease is looked at, to see whether it is still
 * there.
 */
const SETTLE = 1 / 30;
/** How long a lease is given back that was taken in vain: the store may be silent. */
const CLEAR_MS = 5_000;
/** No object has this ETag. */
const NOBODYS = "0".repeat(32);

export interface PutLeaseOptions extends AskOptions {
  /** What the store was found to do once. */
  readonly abilities: StoreAbilities;
  /** Of the lease that is taken over; undefined: there is none. */
  readonly etag: string | undefined;
  /** How long a lease lasts that is not renewed. */
  readonly termMs: number;
}

/** A lease as it was put, and what the store did meanwhile. */
interface PutLease {
  readonly etag: string;
  readonly abilities: StoreAbilities;
}

/** @returns undefined if another process was quicker */
export async function putLease(
  bucket: Bucket,
  key: string,
  holder: string,
  { etag, abilities, signal, termMs }: PutLeaseOptions,
): Promise<PutLease | undefined> {
  const first = await contentNow(holder);
  const put = keepsAll(abilities)
    ? await unlessLacking(() => putOnCondition(bucket, key, first, { etag, signal }))
    : LACKS;
  if (put === undefined) return undefined;
  if (put === LACKS) await bucket.put(key, first, { signal });
  let [found, content] = [abilities, first];
  if (abilities.conditionalCreate || abilities.conditionalReplace) {
    const trial = await tryConditions(bucket, key, holder, signal);
    if (!trial) return undefined;
    found = bothKeep(abilities, trial.abilities);
    if (put !== LACKS && trial.content === undefined && keepsAll(found)) return { etag: put, abilities };
    content = trial.content ?? content;
  }
  await sleep(termMs * SETTLE);
  const there = await bucket.get(key, MOST_LEASE_BYTES, { signal });
  return there?.bytes.equals(content) ? { etag: there.etag, abilities: found } : undefined;
}

interface Trial {
  readonly abilities: StoreAbilities;
  /** What lies in the lease since, if that was replaced. */
  readonly content: Buffer | undefined;
}

/**
 * Tries on a lease that is held what the store does with conditions that can't hold.
 * @returns undefined if it is another process's, or gone
 */
async function tryConditions(
  bucket: Bucket,
  key: string,
  holder: string,
  signal: AbortSignal | undefined,
): Promise<Trial | undefined> {
  let content: Buffer | undefined;
  // Another content each time: one that is there already would look like a success.
  const trying = async <T>(put: (next: Buffer) => Promise<T>): Promise<T | typeof LACKS> => {
    const next = await contentNow(holder);
    const done = await unlessLacking(() => put(next));
    if (done === true || typeof done === "string") content = next;
    return done;
  };
  const create = () => trying((next) => bucket.putIfAbsent(key, next, { signal }));
  const replace = (etag: string) => trying((next) => bucket.replaceIfUnchanged(key, next, { etag, signal }));
  // It may be gone, and then this makes it again: whoever was taken for dead has given it back late, or
  // somebody has removed it by hand.
  let created = await create();
  if (created === true) created = await create();
  let conditionalReplace = (await replace(NOBODYS)) === undefined;
  // Ceph refuses each If-Match in a bucket with versions, and takes no notice of If-None-Match there.
  if (created !== false && conditionalReplace) {
    const there = await bucket.get(key, MOST_LEASE_BYTES, { signal });
    if (!there || holderIn(there.bytes) !== holder) return undefined;
    conditionalReplace = typeof (await replace(there.etag)) === "string";
    if (!conditionalReplace && (await bucket.find(key, { signal }))?.etag !== there.etag) return undefined;
  }
  return { abilities: { conditionalCreate: created === false, conditionalReplace }, content };
}

export async function isHeldBy(
  bucket: Bucket,
  key: string,
  holder: string,
  signal: AbortSignal,
): Promise<boolean> {
  const found = await bucket.get(key, MOST_LEASE_BYTES, { signal });
  return found !== undefined && holderIn(found.bytes) === holder;
}

function holderIn(content: Buffer): unknown {
  return ((parseJson(content.toString("utf8")) ?? {}) as Record<string, unknown>)["holder"];
}

/** Removes a lease that was perhaps taken. */
export async function giveBack(bucket: Bucket, key: string, holder: string): Promise<void> {
  const signal = AbortSignal.timeout(CLEAR_MS);
  if (await isHeldBy(bucket, key, holder, signal)) await bucket.remove([key], { signal });
}

/** @returns the ETag of the lease; undefined: another process was quicker */
async function putOnCondition(
  bucket: Bucket,
  key: string,
  content: Buffer,
  { etag, signal }: Pick<PutLeaseOptions, "etag" | "signal">,
): Promise<string | undefined> {
  if (etag !== undefined) return await bucket.replaceIfUnchanged(key, content, { etag, signal });
  if (!(await bucket.putIfAbsent(key, content, { signal }))) return undefined;
  const made = await bucket.get(key, MOST_LEASE_BYTES, { signal });
  return made?.bytes.equals(content) ? made.etag : undefined;
}

/** Another content each time, so that the ETag changes. */
export async function contentNow(holder: string): Promise<Buffer> {
  const process = { ...(await thisSystemProcess()), holder };
  return Buffer.from(JSON.stringify({ ...process, nonce: randomUUID() }));
}
