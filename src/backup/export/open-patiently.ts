import { setTimeout as sleep } from "node:timers/promises";
import type { NbdAddress, NbdClient } from "../../nbd/index.js";
import { messageOf } from "../base/errors.js";
import { type OpenOptions, openExport } from "./open-export.js";
import type { Outages } from "./outages.js";

const FIRST_DELAY_MS = 200;
const LARGEST_DELAY_MS = 2000;

/** What a line that breaks can do to a connection that is being opened. */
const LOSSES = ["NBD_CONNECT_FAILED", "NBD_CONNECT_TIMEOUT", "NBD_CLOSED_BY_SERVER", "NBD_CONNECTION_LOST"];

/**
 * Like `openExport`, for a server that is known to run: the line may be away just when a disk's turn comes,
 * so the first connection is waited for as long as a lost one would be.
 * @throws as `openExport` does
 */
export async function openPatiently(
  address: NbdAddress,
  bitmap: string | undefined,
  options: OpenOptions & { readonly signal: AbortSignal },
  { outages, opened }: { readonly outages: Outages; readonly opened?: NbdClient[] | undefined },
): Promise<NbdClient> {
  const { reconnect, signal } = options;
  const { withinMs = 0, sameServer = false, prepare } = reconnect ?? {};
  const began = performance.now();
  for (let delay = FIRST_DELAY_MS; ; delay = Math.min(2 * delay, LARGEST_DELAY_MS)) {
    try {
      const client = await openExport(address, bitmap, outages.watch(options, signal), opened);
      if (delay > FIRST_DELAY_MS) outages.waited(performance.now() - began);
      return client;
    } catch (error) {
      signal.throwIfAborted();
      const { code = "" } = error as NodeJS.ErrnoException;
      const isGone = sameServer && address.transport.kind === "unix" && code === "NBD_CONNECT_FAILED";
      if (isGone || !LOSSES.includes(code) || performance.now() - began >= withinMs) throw error;
      if (delay === FIRST_DELAY_MS) outages.isAway(messageOf(error), withinMs);
    }
    await sleep(delay, undefined, { signal });
    // If the way can't be made, the next attempt fails by that.
    await prepare?.(signal).catch(() => undefined);
  }
}
