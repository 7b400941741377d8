import { setTimeout as sleep } from "node:timers/promises";
import { hasCode, messageOf } from "../../base/errors.js";

/** How long a libvirt that is busy, or that says nothing, is asked again: as long as for the end of a job. */
const PATIENCE_MS = 600_000;
/** Time between two looks. libvirt has waited for half a minute before it says that a domain is busy. */
const AGAIN_MS = 250;
/**
 * A domain that another operation holds, as for minutes after a reset of its guest, and a daemon that is
 * connected and doesn't answer.
 */
const PASSING = ["E_DOMAIN_BUSY", "E_LIBVIRT_TIMEOUT"];

export interface LastLookOptions {
  /** Called once with a message, if libvirt has to be asked again. */
  readonly onWait?: ((message: string) => void) | undefined;
  /** Default: ten minutes. */
  readonly patienceMs?: number | undefined;
}

/**
 * Looks again while libvirt can't tell: that is no answer, and the job and what was read of it may be sound.
 * @throws what `look` throws, at once if it is an answer
 */
export async function lookPatiently(
  look: () => Promise<void>,
  { onWait, patienceMs = PATIENCE_MS }: LastLookOptions = {},
): Promise<void> {
  const deadline = performance.now() + patienceMs;
  for (let isTold = false; ; isTold = true) {
    try {
      return await look();
    } catch (error) {
      if (!PASSING.some((code) => hasCode(error, code)) || performance.now() >= deadline) throw error;
      if (!isTold) {
        const minutes = Math.ceil(patienceMs / 60_000);
        onWait?.(
          `libvirt is asked for up to ${minutes} minutes whether the job still runs (${messageOf(error)})`,
        );
      }
    }
    await sleep(AGAIN_MS);
  }
}
