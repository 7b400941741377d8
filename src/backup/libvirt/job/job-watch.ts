import { setTimeout as sleep } from "node:timers/promises";
import { anySignal } from "../../../nbd/index.js";
import { hasCode } from "../../base/errors.js";
import { isHangUp } from "../guest-end.js";
import { jobFactsOf } from "../job-info.js";
import type { DomainRef, Libvirt } from "../libvirt.js";
import { type DomainEvent, EVENT } from "../rpc/events.js";

/** virDomainEventType: VIR_DOMAIN_EVENT_STOPPED. */
const STOPPED = 5;
/** virDomainEventStoppedDetailType, by number. */
const STOPPED_BY = [
  "it was shut down",
  "it was destroyed",
  "it crashed",
  "it was migrated away",
  "it was saved",
  "its QEMU failed",
  "a snapshot was loaded",
];
/**
 * How long libvirt may take to tell of the end, after something else has failed. QEMU hangs up on all clients
 * for hardly any other reason; on a busy host libvirt takes a second to say so.
 */
const NOTICE_MS = { afterHangUp: 5000, otherwise: 500 };
/** Time between the loss of a connection to libvirt and the next one to listen over. */
const AGAIN_MS = 500;

interface WatchOptions {
  readonly libvirt: Libvirt;
  readonly domain: DomainRef;
  /** The error for a job that ended; the reason is libvirt's. */
  readonly ended: (reason: string) => Error;
  /**
   * Asked when events may have been missed: at first, and after a lost connection. Throws if it has ended.
   */
  readonly assertAlive: (signal: AbortSignal) => Promise<void>;
  readonly signal: AbortSignal | undefined;
}

/**
 * Runs `work` with a signal that also fires in the moment in which libvirt tells that the domain's backup job
 * has ended: it failed, somebody ended it, or the domain stopped. Events can be lost, so a result still takes
 * a last look.
 *
 * @throws what `work` throws, or the end of the job that caused it
 */
export async function whileJobRuns<T>(
  { libvirt, domain, ended, assertAlive, signal }: WatchOptions,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const end = new AbortController();
  const done = new AbortController();
  const seen = (event: DomainEvent): void => {
    const reason = endOf(event);
    if (reason !== undefined && !end.signal.aborted) end.abort(ended(reason));
  };
  const listen = () =>
    libvirt.withSignal(done.signal).calls.listen(domain, [EVENT.lifecycle, EVENT.jobCompleted], seen);
  const listenOnce = async (): Promise<void> => {
    const listening = await listen();
    void assertAlive(done.signal).catch((error: unknown) => {
      if (hasCode(error, "E_JOB_ENDED") || hasCode(error, "E_JOB_REPLACED")) end.abort(error);
    });
    const wasLost = await firstOf(listening.lost, done.signal);
    if (!wasLost) await listening.stop();
  };
  const watch = async (): Promise<void> => {
    while (!done.signal.aborted) {
      // libvirt may be away for longer than it is waited for. If it doesn't come back, the last look finds
      // it.
      await listenOnce().catch(() => undefined);
      // A daemon that hangs up each time must not be asked all the time.
      await sleep(AGAIN_MS, undefined, { signal: done.signal });
    }
  };
  const watching = watch().catch(() => undefined);
  try {
    return await work(anySignal(signal, end.signal));
  } catch (error) {
    signal?.throwIfAborted();
    // The server of the exports may be gone a moment before libvirt says why.
    const noticeMs = NOTICE_MS[isHangUp(error) ? "afterHangUp" : "otherwise"];
    await firstOf(end.signal, anySignal(AbortSignal.timeout(noticeMs), signal));
    throw end.signal.aborted ? end.signal.reason : error;
  } finally {
    done.abort();
    await watching;
  }
}

function endOf(event: DomainEvent): string | undefined {
  if (event.kind === "lifecycle") {
    if (event.event !== STOPPED) return undefined;
    return `the domain has stopped: ${STOPPED_BY[event.detail] ?? "it did not say why"}`;
  }
  if (event.kind !== "jobCompleted") return undefined;
  const { operation, error, success } = jobFactsOf(event.params);
  if (operation !== "backup") return undefined;
  return error ?? (success === false ? "it failed" : "it was ended");
}

/** @returns whether the first one fired, at the latest when the second one does */
function firstOf(first: AbortSignal, second: AbortSignal): Promise<boolean> {
  return new Promise((resolve) => {
    const settle = (): void => {
      first.removeEventListener("abort", settle);
      second.removeEventListener("abort", settle);
      resolve(first.aborted);
    };
    if (first.aborted || second.aborted) return settle();
    first.addEventListener("abort", settle);
    second.addEventListener("abort", settle);
  });
}
