/** The end of a backup job: of that one, and of no other that takes its place. */

import { setTimeout as sleep } from "node:timers/promises";
import { BackupError, hasCode } from "../base/errors.js";
import { domainWord } from "../base/shell-word.js";
import type { JobInfo } from "./job-info.js";
import { isJobGone } from "./libvirt-errors.js";

/** How long the end of a cancelled job is waited for, in milliseconds. */
interface EndPatience {
  /** While QEMU still works on it, and nothing that libvirt says of it changes. */
  readonly stillMs: number;
  /** Once QEMU has ended it, or while libvirt is too busy to answer, or hangs. */
  readonly libvirtMs: number;
}

const PATIENCE: EndPatience = { stillMs: 60_000, libvirtMs: 600_000 };
/** A wait of this length is told. */
const LONG_MS = 10_000;
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
  readonly look: () => Promise<SeenJob>;
  /** Has libvirt cancel whatever job runs. Called again only after a look. */
  readonly cancel: () => Promise<unknown>;
}

interface EndOptions {
  readonly patience?: EndPatience;
  readonly isKnown?: boolean;
  readonly isOurs?: IsOurs | undefined;
  readonly onWait?: ((message: string) => void) | undefined;
}

/**
 * Cancels a job and waits until it is gone.
 * @param options see `Libvirt.abortJob`
 * @throws {BackupError} `E_JOB_STUCK`: it no longer moves
 */
export async function endJob(job: JobToEnd, options: EndOptions): Promise<void> {
  const { patience, isKnown = false, isOurs, onWait } = options;
  const end = new JobEnd(patience, () =>
    onWait?.(
      `the backup job of ${job.name} was cancelled and takes long to end: it is waited for as long as it moves`,
    ),
  );
  for (let asked = isKnown && (await isCancelled(job)); ; ) {
    const seen = await unlessBusy(job.look());
    const state = judgeJob(seen, isOurs);
    if (state === "gone") return;
    if (!asked && state === "there") {
      asked = await isCancelled(job);
      // The job is usually gone once libvirt has answered.
      if (asked) continue;
    }
    if (!(await end.wait(seen))) {
      const message = `the backup job of ${job.name} was cancelled but doesn't end: \`virsh domjobinfo ${domainWord(job.name)}\` shows it`;
      throw new BackupError("E_JOB_STUCK", message, { details: { domain: job.name } });
    }
  }
}

/** @returns false if libvirt may not have taken it: it was too busy, or did not answer */
async function isCancelled({ cancel }: JobToEnd): Promise<boolean> {
  try {
    return (await unlessBusy(cancel().then(() => true))) ?? false;
  } catch (error) {
    // The job may have ended since libvirt was asked.
    if (isJobGone(error)) return true;
    if (hasCode(error, "E_LIBVIRT")) return false;
    throw error;
  }
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

/**
 * The wait for the end of a cancelled backup job. libvirt 9 holds a job for minutes that QEMU has ended, if
 * the guest was reset meanwhile: it waits half a minute for each event of the guest's channels. So the job is
 * waited for as long as it moves.
 */
export class JobEnd {
  readonly #patience: EndPatience;
  readonly #onLong: (() => void) | undefined;
  readonly #began = performance.now();
  #state = "";
  #changed = performance.now();
  #isTold = false;

  /** @param onLong called once if the wait becomes long */
  constructor(patience: EndPatience = PATIENCE, onLong?: () => void) {
    this.#patience = patience;
    this.#onLong = onLong;
  }

  /** @returns false if the job no longer moves */
  async wait(seen: SeenJob | undefined): Promise<boolean> {
    const now = performance.now();
    const state = JSON.stringify(seen && [{ ...seen.info, elapsedMs: undefined }, seen.backupXml]) ?? "busy";
    if (state !== this.#state) this.#changed = now;
    this.#state = state;
    const isLibvirts = seen === undefined || seen.info?.scratchUsed === undefined;
    if (now - this.#changed > this.#patience[isLibvirts ? "libvirtMs" : "stillMs"]) return false;
    const isLong = now - this.#began > LONG_MS;
    if (isLong && !this.#isTold) this.#onLong?.();
    this.#isTold ||= isLong;
    await sleep(isLong ? POLL_MS.later : POLL_MS.first);
    return true;
  }
}

/**
 * Resolves with undefined if libvirt was too busy to answer, as it can be while a job ends, or gave no
 * answer in time: a daemon that hangs may go on.
 */
export async function unlessBusy<T>(answer: Promise<T>): Promise<T | undefined> {
  return await answer.catch((error: unknown) => {
    if (hasCode(error, "E_DOMAIN_BUSY") || hasCode(error, "E_LIBVIRT_TIMEOUT")) return undefined;
    throw error;
  });
}
