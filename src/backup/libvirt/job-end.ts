import { setTimeout as sleep } from "node:timers/promises";
import { hasCode } from "../base/errors.js";
import type { JobInfo } from "./job-info.js";

/** How long the end of a cancelled job is waited for, in milliseconds. */
interface EndPatience {
  /** While QEMU still works on it, and nothing that libvirt says of it changes. */
  readonly stillMs: number;
  /** Once QEMU has ended it, or while libvirt is too busy to answer. */
  readonly libvirtMs: number;
}

const PATIENCE: EndPatience = { stillMs: 60_000, libvirtMs: 600_000 };
/** A wait of this length is told. */
const LONG_MS = 10_000;
/** Time between two looks, at first and in a long wait. */
const POLL_MS = { first: 100, later: 1000 };

/** What libvirt says of a domain's job; undefined: it was too busy to answer. */
type JobSeen = { readonly info: JobInfo | undefined; readonly backupXml: string | undefined } | undefined;

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
  async wait(seen: JobSeen): Promise<boolean> {
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

/** Resolves with undefined if libvirt was too busy to answer, as it can be while a job ends. */
export async function unlessBusy<T>(answer: Promise<T>): Promise<T | undefined> {
  return await answer.catch((error: unknown) => {
    if (hasCode(error, "E_DOMAIN_BUSY")) return undefined;
    throw error;
  });
}
