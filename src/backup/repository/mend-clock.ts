import { PreconditionError } from "../base/errors.js";
import { shellWord } from "../base/shell-word.js";
import type { HeldFolder } from "../host/held-folder.js";
import type { HeldLock } from "./domain-lock.js";
import { type Manifest, timeOf } from "./manifest.js";
import { readJournal } from "./prune-journal.js";
import { redate } from "./read-manifest.js";
import type { Repository } from "./repository.js";

export interface MendClockOptions {
  /** Only find out what would be done. */
  readonly dryRun: boolean;
  readonly signal?: AbortSignal | undefined;
  /** @internal called after each point that was dated anew; tests end the process there */
  readonly onStep?: ((id: string) => void) | undefined;
}

/** A point that was dated anew. */
export interface MendedTime {
  readonly id: string;
  /** ISO 8601, likewise `createdAt`. */
  readonly was: string;
  readonly createdAt: string;
  /**
   * What tells the new time: libvirt's checkpoint, the oldest of the point's files, or nothing; then it is the
   * latest that can be: that of the next point, or now.
   */
  readonly by: "checkpoint" | "files" | "next" | "now";
}

/** What tells when a point was made, besides its manifest; milliseconds since 1970. */
interface Evidence {
  readonly checkpoint: number | undefined;
  readonly files: number | undefined;
}

/**
 * Gives points a right `createdAt` where a clock was wrong. Ids stay as they are, since they sort as the points
 * were made, and say with that which times are wrong: those that are later than now, and those that don't fit the
 * most others. Each manifest is replaced in one step, the newest first, so that a run that dies can be repeated.
 *
 * @param domain the name of its folder in the repository
 * @returns what was done, newest first
 * @throws {PreconditionError} `E_CLOCK`: the clock is wrong now; `E_PRUNE_UNFINISHED`: a prune has to be finished
 *   before; `E_LOCKED`: another process writes this domain's points
 */
export async function mendClock(
  repository: Repository,
  domain: string,
  options: MendClockOptions,
): Promise<MendedTime[]> {
  const { dryRun, signal, onStep } = options;
  if (dryRun) return await repository.reading(domain, () => plan(repository, domain), signal);
  const mend = async ({ folder, assertHeld }: HeldLock): Promise<MendedTime[]> => {
    if (await readJournal(folder)) throw unfinishedPrune(repository, domain);
    const mended = await plan(repository, domain);
    for (const { id, createdAt } of mended) {
      signal?.throwIfAborted();
      await using point = await repository.holdPoint(domain, id);
      await redate(point, createdAt, assertHeld);
      onStep?.(id);
    }
    return mended;
  };
  return await repository.writing(domain, mend, signal);
}

async function plan(repository: Repository, domain: string): Promise<MendedTime[]> {
  const now = Date.now();
  const points = await repository.points(domain, () => undefined);
  const evidence = await Promise.all(points.map((point) => evidenceOf(repository, domain, point)));
  const times = points.map(timeOf);
  const right = inOrder(times, now);
  if (right.size === points.length) return [];
  const past = points.filter((point, i) => {
    const told = [timeOf(point), evidence[i]?.checkpoint, evidence[i]?.files];
    return told.some((time) => time !== undefined && time <= now);
  });
  if (past.length * 2 < points.length) throw wrongClock(domain, now);
  const mended: MendedTime[] = [];
  let next: { readonly time: number; readonly by: "next" | "now" } = { time: now, by: "now" };
  for (const [i, point] of [...points.entries()].reverse()) {
    const time = times[i] ?? now;
    if (right.has(i)) {
      next = { time, by: "next" };
      continue;
    }
    const earliest = Math.max(...times.filter((_, before) => before < i && right.has(before)));
    const found = told(evidence[i], earliest, next.time) ?? next;
    mended.push({
      id: point.id,
      was: point.createdAt,
      createdAt: new Date(found.time).toISOString(),
      by: found.by,
    });
    next = { time: found.time, by: "next" };
  }
  return mended;
}

/** The time that the evidence tells, if it can be right. */
function told(
  evidence: Evidence | undefined,
  earliest: number,
  latest: number,
): (Pick<MendedTime, "by"> & { readonly time: number }) | undefined {
  for (const by of ["checkpoint", "files"] as const) {
    const time = evidence?.[by];
    if (time !== undefined && time >= earliest && time <= latest) return { time, by };
  }
  return undefined;
}

/**
 * The places of most times that are in order, none of them after `now`. Of several choices that with the later
 * places: a clock that was wrong has mostly been mended.
 */
function inOrder(times: readonly number[], now: number): ReadonlySet<number> {
  /** For each place: how many times are in order from there on, and the place of the next one. */
  const chains: { readonly length: number; readonly next: number }[] = [];
  let longest = { length: 0, next: -1 };
  for (let i = times.length - 1; i >= 0; i -= 1) {
    const time = times[i] ?? now;
    let best = { length: 0, next: -1 };
    for (let j = times.length - 1; j > i; j -= 1) {
      const length = chains[j]?.length ?? 0;
      if (time <= (times[j] ?? now) && length > best.length) best = { length, next: j };
    }
    const fits = time <= now;
    chains[i] = { length: fits ? best.length + 1 : 0, next: best.next };
    if (fits && best.length + 1 > longest.length) longest = { length: best.length + 1, next: i };
  }
  const places = new Set<number>();
  for (let i = longest.next; i >= 0; i = chains[i]?.next ?? -1) places.add(i);
  return places;
}

async function evidenceOf(repository: Repository, domain: string, point: Manifest): Promise<Evidence> {
  await using folder = await repository.holdPoint(domain, point.id);
  const seconds = isImported(point) ? undefined : (point.checkpoint?.creationTime ?? undefined);
  return { checkpoint: seconds === undefined ? undefined : seconds * 1000, files: await oldestFile(folder) };
}

/** Imported points are dated when they are imported; their checkpoint is older. */
function isImported({ disks }: Manifest): boolean {
  return disks.every(({ exportName }) => exportName === "");
}

/** A prune changes some of the files, and so their times. */
async function oldestFile(folder: HeldFolder): Promise<number | undefined> {
  let oldest: number | undefined;
  for (const name of await folder.names()) {
    const found = await folder.find(name);
    if (found?.isFile()) oldest = Math.min(oldest ?? found.mtimeMs, found.mtimeMs);
  }
  return oldest;
}

function wrongClock(domain: string, now: number): PreconditionError {
  const time = new Date(now).toISOString();
  const message = `it is ${time} by the clock, and most points of ${domain} are of later times by all that tells it: set the clock, if it is wrong. If it is right, take more backups first, or prune those points. Nothing was changed`;
  return new PreconditionError("E_CLOCK", message, { details: { domain } });
}

function unfinishedPrune({ path }: Repository, domain: string): PreconditionError {
  const message = `a prune of ${domain} was interrupted, and has to be finished first: nbdpull prune ${shellWord(path)} ${shellWord(domain)}. Nothing was changed`;
  return new PreconditionError("E_PRUNE_UNFINISHED", message, { details: { domain } });
}
