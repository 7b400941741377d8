/** Times and spans of time, as people read and write them. */
import { UsageError } from "../src/backup/base/errors.js";

const UNITS = { s: 1, m: 60, h: 3600, d: 24 * 3600, w: 7 * 24 * 3600 } as const;
/** Hours and minutes are told up to two days. */
const TWO_DAYS = 2 * UNITS.d;

/** Local time, such as `2026-11-20 16:22:16`. */
export function localTime(iso: string): string {
  return new Date(iso).toLocaleString("sv-SE");
}

/**
 * Parses a span such as `90m`, `26h` or `7d`.
 * @returns seconds
 * @throws {UsageError} `E_DURATION`: anything else, or zero
 */
export function parseDuration(text: string): number {
  const [, digits, unit] = /^(\d{1,9}(?:\.\d{1,3})?)([smhdw])$/.exec(text) ?? [];
  const seconds = Number(digits) * UNITS[unit as keyof typeof UNITS];
  if (seconds > 0) return seconds;
  const message = `"${text}" is not a span of time: give a number with s, m, h, d or w, such as 26h`;
  throw new UsageError("E_DURATION", message);
}

/** A span in one or two units, such as `45 min`, `26 h`, `3 days`. */
export function durationText(seconds: number): string {
  if (seconds < 0) return `-${durationText(-seconds)}`;
  if (seconds < UNITS.m) return `${Math.round(seconds)} s`;
  if (seconds < UNITS.h) return `${Math.round(seconds / UNITS.m)} min`;
  if (seconds < TWO_DAYS) return `${Number((seconds / UNITS.h).toFixed(1))} h`;
  return `${Number((seconds / UNITS.d).toFixed(1))} days`;
}
