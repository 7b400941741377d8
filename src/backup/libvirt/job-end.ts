/** The end of a backup job: of that one, and of no other that takes its place. */

import { setTimeout as sleep } from "node:timers/promises";
import { BackupError, hasCode } from "../base/errors.js";
import { domainWord } from "../base/shell-word.js";
import type { JobInfo } from "./job-info.js";
import { PATIENCE_MS } from "./libvirt-calls.js";
import { isHeldByEvent, isJobGone } from "./libvirt-errors.js";

/** How long a job that is to end is waited for, in milliseconds. */
interface EndPatience {
  /** While QEMU still works on it after it was cancelled, and nothing that libvirt says of it changes. */
  readonly stillMs: number;
  /** Before it is cancelled, once QEMU has ended it, or while libvirt is too busy to answer. */
  readonly libvirtMs: number;
  /** While libvirt gives no answer at all: it is away, or hangs. */
  readonly awayMs: number;
  /** A wait of this length is told. */
  readonly tellMs: number;
}

const PATIENCE: EndPatience = {
  stillMs: 60_000,
  libvirtMs: 600_000,
  awayMs: PATIENCE_MS,
  tellMs: 10_000,
};
/** A look at whose job runs is too old after that to cancel it. */
const CANCEL_WITHIN_MS = 1000;
/** Refusals in a row after which QEMU is taken to hang. */
const HELD_TIMES = 2;
/** Time between two looks, at first and in a long wait. */
const POLL_MS = { first: 100, later: 1000 };

/** What libvirt says of the job that runs on a domain. */
interface SeenJob {
  readonly info: JobInfo | undefined;
  readonly backupXml: string | undefined;
}

/** Tells the job that is to be ended, by its XML, from one that another program began after it. */
type IsOurs = (backupXml: string) => boolean;

interface JobToEnd {
  /** The name of its domain, for messages. */
  readonly name: string;
  /** Without patience: a libvirt that is away is waited for here. */
  readonly look: () => Promise<SeenJob>;
  /** Has libvirt cancel whatever job runs, or nothing after `sendBefore`. Called again only after a look. */
  readonly cancel: (sending: {
    readonly sendBefore: number;
    readonly onSent: () => void;
  }) => Promise<unknown>;
}

interface EndOptions {
  readonly patience?: Partial<EndPatience>;
  readonly isKnown?: boolean;
  readonly isOurs?: IsOurs | undefined;
  readonly onCancelled?: ((doubted: AbortSignal) => void) | undefined;
  readonly onWait?: ((message: string) => void) | undefined;
}

/**
 * Cancels a job and waits until it is gone.
 * @param options see `Libvirt.abortJob`
 * @throws {BackupError} `E_JOB_STUCK`: it no longer moves
 * @throws {PreconditionError | BackupError} `E_LIBVIRT`, `E_LIBVIRT_TIMEOUT`, `E_DOMAIN_BUSY`: libvirt never
 *   took the cancelling
 */
export async function endJob(job: JobToEnd, options: EndOptions): Promise<void> {
  const { patience, isKnown = false, isOurs, onCancelled, onWait } = options;
  const { name } = job;
  using end = new JobEnd(patience, () => onWait?.(end.isCancelled ? slowMessage(name) : busyMessage(name)));
  let doubt: AbortController | undefined;
  const tellIfTaken = (): void => {
    const isTaken = end.isCancelled || end.isTaken;
    if (isTaken === (doubt !== undefined)) return;
    doubt?.abort();
    doubt = isTaken ? new AbortController() : undefined;
    if (doubt) onCancelled?.(doubt.signal);
  };
  const isCancelled = async (): Promise<boolean> => {
    await end.cancel((onSent) => job.cancel({ sendBefore: performance.now() + CANCEL_WITHIN_MS, onSent }));
    tellIfTaken();
    return end.isCancelled;
  };
  if (isKnown) await isCancelled();
  for (;;) {
    const seen = await end.look(job.look);
    const state = judgeJob(seen, isOurs);
    if (state === "gone") return;
    if (state === "there" && seen !== undefined) end.doubtTaken();
    tellIfTaken();
    // The job is usually gone once libvirt has answered.
    if (!end.isCancelled && state === "there" && (await isCancelled())) continue;
    if (!(await end.wait(seen)))
      throw end.isCancelled ? jobStuck(name, end) : (end.failure ?? jobStuck(name, end));
  }
}

function slowMessage(name: string): string {
  return `the backup job of ${name} was cancelled and takes long to end: it is waited for as long as it moves`;
}

/** That libvirt doesn't tell of a job, or doesn't take its cancelling. */
export function busyMessage(name: string): string {
  return `libvirt is busy with ${name}, or away: its backup job is ended as soon as it answers`;
}

/** The error for a job that is given up. */
export function jobStuck(name: string, { isCancelled, failure: cause }: JobEnd): BackupError {
  const what = isCancelled ? "was cancelled but doesn't end" : "doesn't end and could not be cancelled";
  const message = `the backup job of ${name} ${what}: \`virsh domjobinfo ${domainWord(name)}\` shows it`;
  return new BackupError("E_JOB_STUCK", message, { cause, details: { domain: name } });
}

/**
 * What is to be done about a job that was asked to end, or will be. `gone`: it has ended, and what runs now,
 * if anything does, is another's. `there`: it runs, and may be cancelled. `unclear`: a backup job of which
 * libvirt has no description: ours on its way out, or another's that begins; and likewise while libvirt is
 * too busy to tell.
 *
 * @param isOurs undefined: any backup job is the one to end
 */
function judgeJob(seen: SeenJob | undefined, isOurs: IsOurs | undefined): "gone" | "there" | "unclear" {
  if (seen === undefined) return isOurs === undefined ? "there" : "unclear";
  if (!isBackupJob(seen)) return "gone";
  if (isOurs === undefined) return "there";
  if (seen.backupXml === undefined) return "unclear";
  return isThat(seen.backupXml, isOurs) ? "there" : "gone";
}

/**
 * Whether a backup job runs. It is gone only if both answers say so: its description goes first, and only
 * then can the next job begin.
 */
function isBackupJob({ info, backupXml }: SeenJob): boolean {
  return info?.active ? info.operation === "backup" : backupXml !== undefined;
}

function isThat(backupXml: string, isOurs: IsOurs): boolean {
  try {
    return isOurs(backupXml);
  } catch {
    // A job in push mode, for instance: the one to end could be read when it was opened.
    return false;
  }
}

/** A libvirt that is too busy to answer, as it can be while a job ends, or hangs, or is away, may go on. */
const PASSING = ["E_DOMAIN_BUSY", "E_LIBVIRT", "E_LIBVIRT_TIMEOUT"];

/**
 * The wait for the end of a backup job. libvirt 9 holds a job for minutes that QEMU has ended, if the guest
 * was reset meanwhile: it waits half a minute for each event of the guest's channels. So the job is waited
 * for as long as it moves. Who gives it up too early disconnects from it, which kills a guest with iothreads
 * on QEMU 7.2: it stands still only in time in which libvirt answers and shows that nothing has changed.
 */
export class JobEnd implements Disposable {
  readonly #patience: EndPatience;
  readonly #onLong: (() => void) | undefined;
  readonly #began = performance.now();
  readonly #timer: NodeJS.Timeout;
  #isCancelled = false;
  /** A cancelling was sent whose answer is lost, and the job was not seen since. */
  #mayBeTaken = false;
  /** How often in a row libvirt has said that its thread for QEMU's events holds the domain. */
  #heldTimes = 0;
  #failure: unknown;
  /** Since when libvirt gives no answer, to whatever it is asked. */
  #away: number | undefined;
  /** Since when no look was answered. */
  #unseen: number | undefined;
  /** Since when libvirt doesn't take the cancelling. */
  #untaken: number | undefined;
  #state = "";
  #stillMs = 0;
  #isTold = false;

  /** @param onLong called once if the wait becomes long, also in the middle of a look */
  constructor(patience: Partial<EndPatience> = {}, onLong?: () => void) {
    this.#patience = { ...PATIENCE, ...patience };
    this.#onLong = onLong;
    this.#timer = setTimeout(() => this.#tell(), this.#patience.tellMs);
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
  }

  /** Whether libvirt has taken the cancelling. */
  get isCancelled(): boolean {
    return this.#isCancelled;
  }

  /**
   * Whether libvirt seems to have taken a cancelling although its answer is lost: what it does on an event of
   * QEMU holds the domain, as when it has heard of the end of what QEMU did for the job, and QEMU doesn't let
   * it get on. It says so after half a minute, and names who holds the domain just then, which may have to do
   * with another event: it has to say so twice, and nothing else meanwhile.
   */
  get isTaken(): boolean {
    return this.#mayBeTaken && this.#heldTimes >= HELD_TIMES;
  }

  /** The job was seen, and libvirt had not said that it is cancelled: what was sent may never have come. */
  doubtTaken(): void {
    this.#mayBeTaken = false;
  }

  /** Why the last question was not answered; undefined: it was. */
  get failure(): unknown {
    return this.#failure;
  }

  /** @returns undefined if libvirt is too busy to tell, or gives no answer */
  async look(look: () => Promise<SeenJob>): Promise<SeenJob | undefined> {
    const asked = performance.now();
    const seen = await this.#ask(look);
    this.#unseen = seen === undefined ? (this.#unseen ?? asked) : undefined;
    return seen;
  }

  /** @returns false if libvirt may not have taken it: it was too busy, or did not answer */
  async cancel(cancel: (onSent: () => void) => Promise<unknown>): Promise<boolean> {
    const asked = performance.now();
    let wasSent = false;
    const onSent = (): void => {
      wasSent = true;
    };
    const taken = await this.#ask(() =>
      cancel(onSent).then(
        () => true,
        (error: unknown) => {
          // The job may have ended since libvirt was asked.
          if (isJobGone(error)) return true;
          throw error;
        },
      ),
    );
    this.#isCancelled = taken ?? false;
    // A libvirt that is too busy has answered: it has not taken this one.
    if (wasSent && !hasCode(this.#failure, "E_DOMAIN_BUSY")) this.#mayBeTaken = true;
    this.#untaken = taken ? undefined : (this.#untaken ?? asked);
    // QEMU begins to end it only now, however long it was seen before.
    this.#stillMs = 0;
    return this.#isCancelled;
  }

  /** @returns false if the job no longer moves, or libvirt was waited for long enough */
  async wait(seen: SeenJob | undefined): Promise<boolean> {
    const now = performance.now();
    const { awayMs, libvirtMs, stillMs, tellMs } = this.#patience;
    if (now - (this.#away ?? now) > awayMs) return false;
    if (now - Math.min(this.#unseen ?? now, this.#untaken ?? now) > libvirtMs) return false;
    if (seen !== undefined) {
      const state = JSON.stringify([{ ...seen.info, elapsedMs: undefined }, seen.backupXml]);
      if (state !== this.#state) this.#stillMs = 0;
      this.#state = state;
      const isLibvirts = !this.#isCancelled || seen.info?.scratchUsed === undefined;
      if (this.#stillMs > (isLibvirts ? libvirtMs : stillMs)) return false;
    }
    const isLong = now - this.#began > tellMs;
    if (isLong) this.#tell();
    const pollMs = isLong ? POLL_MS.later : POLL_MS.first;
    await sleep(pollMs);
    // Not by the clock: a host that was suspended meanwhile has not waited.
    if (seen !== undefined) this.#stillMs += pollMs;
    return true;
  }

  async #ask<T>(question: () => Promise<T>): Promise<T | undefined> {
    const asked = performance.now();
    try {
      const answer = await question();
      this.#failure = undefined;
      this.#away = undefined;
      this.#heldTimes = 0;
      return answer;
    } catch (error) {
      if (!PASSING.some((code) => hasCode(error, code))) throw error;
      this.#failure = error;
      // A libvirt that gives no answer says nothing new, unless it has ended.
      if (isHeldByEvent(error)) this.#heldTimes += 1;
      else if (!hasCode(error, "E_LIBVIRT_TIMEOUT")) this.#heldTimes = 0;
      this.#away = hasCode(error, "E_DOMAIN_BUSY") ? undefined : (this.#away ?? asked);
      return undefined;
    }
  }

  #tell(): void {
    if (!this.#isTold) this.#onLong?.();
    this.#isTold = true;
  }
}
