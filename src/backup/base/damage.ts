import { DamageError, hasCode } from "./errors.js";

/** Something that is not as it was written. */
export interface Damage {
  readonly message: string;
  /** Where on the disk, in bytes; left out, and the length with it, where it concerns the file as a whole. */
  readonly guestOffset?: number | undefined;
  /** How much of the disk, in bytes. */
  readonly length?: number | undefined;
}

/** Told of every damage; it may throw to end the work, or note it and return to go on. */
export type OnDamage = (damage: Damage) => void;

/**
 * What an error says of the bytes that were looked for, in words that are the same for neighbours. Undefined if it
 * says nothing of them.
 */
export function damageIn(error: unknown): string | undefined {
  if (isUnreadable(error)) return `the file system cannot read it (${error.code})`;
  if (!(error instanceof DamageError)) return undefined;
  const { problem } = error.details;
  return typeof problem === "string" ? problem : error.message;
}

/** What a failing medium says. */
export function isUnreadable(error: unknown): error is NodeJS.ErrnoException {
  return ["EIO", "EUCLEAN", "EBADMSG"].some((code) => hasCode(error, code));
}

type Growing = { -readonly [K in keyof Damage]: Damage[K] };

/**
 * Damages as a report lists them: neighbours of the same kind are one, with the length of all. Told in guest order, as
 * far as they have the same message.
 */
export class DamageList {
  readonly #most: number;
  readonly #list: Growing[] = [];
  readonly #lastOf = new Map<string, Growing>();
  #omitted = false;

  /** @param most how many are listed; a wrecked image has them by the million */
  constructor(most: number) {
    this.#most = most;
  }

  readonly note: OnDamage = (damage) => {
    const last = this.#lastOf.get(damage.message);
    if (last?.guestOffset !== undefined && last.length !== undefined && damage.length !== undefined) {
      if (damage.guestOffset === last.guestOffset + last.length) {
        last.length += damage.length;
        return;
      }
    }
    if (this.#list.length === this.#most) {
      this.#omitted = true;
      return;
    }
    const listed = { ...damage };
    this.#list.push(listed);
    this.#lastOf.set(damage.message, listed);
  };

  /** Those of a file as a whole first, then in guest order. */
  list(): Damage[] {
    const sorted = this.#list.toSorted((a, b) => (a.guestOffset ?? -1) - (b.guestOffset ?? -1));
    return this.#omitted ? [...sorted, { message: "and more; the rest is not listed" }] : sorted;
  }
}
