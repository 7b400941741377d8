/** Bounds on the block status of an export, which a server could otherwise send for ever. */

import { ConnectionError, quote } from "./errors.js";
import { refused } from "./refusal.js";
import { COMMAND } from "./wire/constants.js";

export interface MapLimits {
  /** Limit on the time spent waiting for block status alone, in one walk. */
  readonly mapTimeoutMs: number;
  /** Most extents of one context in one walk. */
  readonly maxExtents: number;
}

/** Time is looked at in such steps while a reply is awaited. */
const STEP_MS = 1000;

/**
 * Adds up the time that a walk waits for block status. Time in which other replies were outstanding as well
 * doesn't count: then the line may be busy with them, and their own limits apply. No step counts for more
 * than its length, however long this process was suspended.
 */
export class MapClock {
  readonly #timeoutMs: number;
  readonly #stepMs: number;
  readonly #isBusyOtherwise: () => boolean;
  #waitedMs = 0;

  constructor({ mapTimeoutMs }: MapLimits, isBusyOtherwise: () => boolean) {
    this.#timeoutMs = mapTimeoutMs;
    this.#stepMs = Math.min(STEP_MS, mapTimeoutMs / 4);
    this.#isBusyOtherwise = isBusyOtherwise;
  }

  /** @throws {ConnectionError} NBD_MAP_TIMEOUT */
  async wait<T>(reply: Promise<T>, offset: number): Promise<T> {
    let since = performance.now();
    const count = (): void => {
      const now = performance.now();
      if (!this.#isBusyOtherwise()) this.#waitedMs += Math.min(now - since, this.#stepMs);
      since = now;
    };
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((resolve) => {
      timer = setInterval(() => {
        count();
        if (this.#isOver) resolve();
      }, this.#stepMs);
    });
    try {
      await Promise.race([reply, late]);
    } finally {
      clearInterval(timer);
    }
    count();
    if (!this.#isOver) return await reply;
    const message = `the server took more than ${this.#timeoutMs} ms for block status and got to offset ${offset}: look at its storage, or allow it more time`;
    throw new ConnectionError("NBD_MAP_TIMEOUT", message);
  }

  get #isOver(): boolean {
    return this.#waitedMs >= this.#timeoutMs;
  }
}

/** @throws {RequestError} NBD_TOO_MANY_EXTENTS */
export function checkExtentCount(count: number, { maxExtents }: MapLimits, name: string, end: number): void {
  if (count <= maxExtents) return;
  const reason = `the server described more than ${maxExtents} extents of ${quote(name)} there, which would take too much memory. If the disk really is that fragmented, copy it without that context, or allow more`;
  throw refused("NBD_TOO_MANY_EXTENTS", COMMAND.BLOCK_STATUS, 0, end, reason);
}
