import { PreconditionError } from "../base/errors.js";
import { shellWord } from "../base/shell-word.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import type { StoreWriting } from "../storage/stored-writing.js";
import type { HeldLock } from "./domain-lock.js";
import { judgeTimes, type ToldTimes } from "./judge-times.js";
import { type Manifest, timeOf } from "./manifest.js";
import { readJournal } from "./prune-journal.js";
import { redate } from "./read-manifest.js";
import { redatedInStore } from "./redated-in-store.js";
import type { Repository } from "./repository.js";

export interface MendClockOptions {
  /** Only find out what would be done. */
  readonly dryRun: boolean;
  /** Ids of points whose times the user says are wrong. */
  readonly wrong?: readonly string[] | undefined;
  /** Receives what can't be known. Those points stay as they are. */
  readonly onDoubt?: ((doubt: ClockDoubt) => void) | undefined;
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
   * What tells the new time: libvirt's checkpoint, the oldest of the point's files, or nothing; then it is
   * the latest that can be: that of the next point, or now.
   */
  readonly by: "checkpoint" | "files" | "next" | "now";
}

/** Points whose times don't sort as the points were made, and nothing tells which of them are wrong. */
export interface ClockDoubt {
  /** Ids of points that are later than one that was made after them: their clock was ahead, … */
  readonly tooLate: readonly string[];
  /** … or that of these was behind. */
  readonly tooEarly: readonly string[];
}

/**
 * Gives points a right `createdAt` where a clock was wrong: where a time is later than now or impossibly
 * early, where it doesn't sort as the points were made and another clock says otherwise, and where the user
 * says so; see `judgeTimes`. Ids stay as they are. Each manifest is replaced in one step, the newest first,
 * so that a run that dies can be repeated.
 *
 * @param domain the name of its folder in the repository
 * @returns what was done, newest first
 * @throws {PreconditionError} `E_NO_POINT`: one of `wrong` is not there; `E_CLOCK`: the clock is wrong now;
 *   `E_PRUNE_UNFINISHED`: a prune has to be finished before; `E_LOCKED`: another process writes this domain's
 *   points
 */
export async function mendClock(
  repository: Repository,
  domain: string,
  options: MendClockOptions,
): Promise<MendedTime[]> {
  const { dryRun, signal, onStep } = options;
  if (dryRun) return await repository.reading(domain, () => plan(repository, domain, options), signal);
  const mend = async (date: (id: string, createdAt: string) => Promise<void>): Promise<MendedTime[]> => {
    const mended = await plan(repository, domain, options);
    for (const { id, createdAt } of mended) {
      signal?.throwIfAborted();
      await date(id, createdAt);
      onStep?.(id);
    }
    return mended;
  };
  if (repository.isInStore) {
    const inStore = (writing: StoreWriting): Promise<MendedTime[]> =>
      mend((id, createdAt) => writing.rewrite(id, (text, etag) => redatedInStore(text, createdAt, etag)));
    return await repository.writingInStore(domain, inStore, signal);
  }
  const inFolder = async ({ folder, assertHeld }: HeldLock): Promise<MendedTime[]> => {
    if (await readJournal(folder)) throw unfinishedPrune(repository, domain);
    return await mend(async (id, createdAt) => {
      await using point = await repository.holdPoint(domain, id);
      await redate(point, createdAt, assertHeld);
    });
  };
  return await repository.writing(domain, inFolder, signal);
}

async function plan(
  repository: Repository,
  domain: string,
  { wrong: named = [], onDoubt }: MendClockOptions,
): Promise<MendedTime[]> {
  const now = Date.now();
  const points = await repository.points(domain, () => undefined);
  const ids = points.map(({ id }) => id);
  const strange = named.find((id) => !ids.includes(id));
  if (strange !== undefined) throw noPoint(domain, strange);
  const told = await Promise.all(points.map((point) => toldBy(repository, domain, point)));
  const { wrong, tooLate, tooEarly } = judgeTimes(told, now, (i) => named.includes(ids[i] ?? ""));
  const idsOf = (places: readonly number[]): string[] => places.flatMap((i) => ids[i] ?? []);
  if (tooLate.length > 0) onDoubt?.({ tooLate: idsOf(tooLate), tooEarly: idsOf(tooEarly) });
  if (wrong.size === 0) return [];
  const past = told.filter(({ time, checkpoint, files }) =>
    [time, checkpoint, files].some((each) => each !== undefined && each <= now),
  );
  if (past.length * 2 < points.length) throw wrongClock(domain, now);
  const doubtful = new Set([...tooLate, ...tooEarly]);
  const isRight = (i: number): boolean => !wrong.has(i) && !doubtful.has(i);
  const mended: MendedTime[] = [];
  let next: { readonly time: number; readonly by: "next" | "now" } = { time: now, by: "now" };
  for (const [i, point] of [...points.entries()].reverse()) {
    const time = told[i]?.time ?? now;
    if (isRight(i)) next = { time, by: "next" };
    if (!wrong.has(i)) continue;
    const earliest = Math.max(...told.flatMap((each, j) => (j < i && isRight(j) ? [each.time] : [])));
    const found = timeIn(told[i], earliest, next.time) ?? next;
    if (found.time !== time) {
      const createdAt = new Date(found.time).toISOString();
      mended.push({ id: point.id, was: point.createdAt, createdAt, by: found.by });
    }
    next = { time: found.time, by: "next" };
  }
  return mended;
}

/** The time that the evidence tells, if it can be right. */
function timeIn(
  told: ToldTimes | undefined,
  earliest: number,
  latest: number,
): (Pick<MendedTime, "by"> & { readonly time: number }) | undefined {
  for (const by of ["checkpoint", "files"] as const) {
    const time = told?.[by];
    if (time !== undefined && time >= earliest && time <= latest) return { time, by };
  }
  return undefined;
}

async function toldBy(repository: Repository, domain: string, point: Manifest): Promise<ToldTimes> {
  await using folder = await repository.openPoint(domain, point.id);
  const seconds = isImported(point) ? undefined : (point.checkpoint?.creationTime ?? undefined);
  const checkpoint = seconds === undefined ? undefined : seconds * 1000;
  return { time: timeOf(point), checkpoint, files: await oldestFile(folder) };
}

/** Imported points are dated when they are imported; their checkpoint is older. */
function isImported({ disks }: Manifest): boolean {
  return disks.every(({ exportName }) => exportName === "");
}

/** A prune changes some of the files, and so their times. */
async function oldestFile(folder: StoredFolder): Promise<number | undefined> {
  let oldest: number | undefined;
  for (const name of await folder.names()) {
    const found = await folder.find(name);
    const time = found?.isFile() ? found.mtimeMs : undefined;
    if (time !== undefined) oldest = Math.min(oldest ?? time, time);
  }
  return oldest;
}

function noPoint(domain: string, id: string): PreconditionError {
  const message = `${domain} has no restore point ${id}. List what there is with "nbdpull points". Nothing was changed`;
  return new PreconditionError("E_NO_POINT", message, { details: { domain, at: id } });
}

function wrongClock(domain: string, now: number): PreconditionError {
  const time = new Date(now).toISOString();
  const message = `it is ${time} by the clock, and most points of ${domain} are of later times by all that tells it: set the clock, if it is wrong. If it is right, take more backups first, or prune those points. Nothing was changed`;
  return new PreconditionError("E_CLOCK", message, { details: { domain } });
}

function unfinishedPrune({ path }: Repository, domain: string): PreconditionError {
  const message = `a prune of ${domain} was interrupted, and has to be finished first: nbdpull prune ${shellWord(path)} ${shellWord(domain)} (with the rules that you keep points by). Nothing was changed`;
  return new PreconditionError("E_PRUNE_UNFINISHED", message, { details: { domain } });
}
