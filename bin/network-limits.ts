/** How long a server is waited for, and how much it may say. */
import { type Command, InvalidArgumentError } from "commander";
import { UsageError } from "../src/backup/base/errors.js";
import type { ConnectOptions } from "../src/nbd/index.js";
import { parseSize } from "./sizes.js";

/** Options of every command that speaks to an NBD server; times in seconds. */
export interface LimitOptions {
  readonly handshakeTimeout?: number;
  readonly idleTimeout?: number;
  readonly minRate?: number;
  readonly mapTimeout?: number;
  readonly maxExtents?: number;
}

/** Node's timers hold 31 bits of milliseconds. */
export const MOST_SECONDS = 2_000_000;

/** Days in which `verify` comes to all points. */
export const MOST_SHARES = 1000;

export function withLimits(command: Command): Command {
  return command
    .option("--handshake-timeout <seconds>", "limit for connecting and the handshake (default 10)", seconds)
    .option(
      "--idle-timeout <seconds>",
      "give up a server that sends nothing for this time, though asked (default 60)",
      seconds,
    )
    .option(
      "--min-rate <bytes/s>",
      "give up a server that falls a minute behind this rate, while asked (default 1K; 0: any)",
      (text) => (text === "0" ? 0 : rate(text)),
    )
    .option(
      "--map-timeout <seconds>",
      "limit for waiting for a disk's map and nothing else (default 3600)",
      seconds,
    )
    .option(
      "--max-extents <n>",
      "give up a map of more extents, which take memory (default 32000000)",
      wholeNumber(1, 1e12),
    );
}

export function limitsOf(options: LimitOptions): ConnectOptions {
  const { handshakeTimeout, idleTimeout, minRate, mapTimeout, maxExtents } = options;
  return {
    ...(handshakeTimeout === undefined ? {} : { connectTimeoutMs: handshakeTimeout * 1000 }),
    ...(idleTimeout === undefined ? {} : { idleTimeoutMs: idleTimeout * 1000 }),
    ...(minRate === undefined ? {} : { minRate }),
    ...(mapTimeout === undefined ? {} : { mapTimeoutMs: mapTimeout * 1000 }),
    ...(maxExtents === undefined ? {} : { maxExtents }),
  };
}

function seconds(text: string): number {
  return wholeNumber(1, MOST_SECONDS)(text);
}

function rate(text: string): number {
  try {
    return parseSize(text);
  } catch (error) {
    if (error instanceof UsageError) throw new InvalidArgumentError(error.message);
    throw error;
  }
}

export function wholeNumber(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\d{1,15}$/.test(text) && value >= least && value <= most) return value;
    throw new InvalidArgumentError(`Give a whole number from ${least} to ${most}.`);
  };
}
