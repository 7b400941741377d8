import { DamageError, hasCode } from "./errors.js";

/** A part of a file, or a file as a whole, that is not as it was written. */
export interface Damage {
  readonly message: string;
  /** Where the damage begins on the disk, in bytes. Undefined, like `length`, if it concerns a whole file. */
  readonly guestOffset?: number | undefined;
  /** Bytes of the disk that are damaged. */
  readonly length?: number | undefined;
}

/** Called for each damage. If it throws, the work ends; if it returns, the work goes on. */
export type OnDamage = (damage: Damage) => void;

/**
 * The message for a damage that an error reports: of a {@link DamageError}, its `details.problem` or else its
 * message; or that the file system can't read the bytes. A `problem` contains neither path nor guest offset,
 * so that {@link DamageList} can join neighbours with the same problem.
 * @returns undefined if the error reports no damage
 */
export function damageIn(error: unknown): string | undefined {
  if (isUnreadable(error)) return `the file system cannot read it (${error.code})`;
  if (!(error instanceof DamageError)) return undefined;
  const { problem } = error.details;
  return typeof problem === "string" ? problem : error.message;
}

/** Whether a failing medium or a damaged file system caused the error: EIO, EUCLEAN or EBADMSG. */
export function isUnreadable(error: unknown): error is NodeJS.ErrnoException {
  return ["EIO", "EUCLEAN", "EBADMSG"].some((code) => hasCode(error, code));
}

type MutableDamage = { -readonly [K in keyof Damage]: Damage[K] };

/**
 * The list of damages for a report. Adjacent damages with the same message become one, with the length of
 * all. Damages with the same message must be added in guest order.
 */
export class DamageList {
  readonly #most: number;
  readonly #list: MutableDamage[] = [];
  readonly #lastOf = new Map<string, MutableDamage>();
  #omitted = false;

  /** @param most how many damages are listed at most, because a wrecked image can have millions */
  constructor(most: number) {
    this.#most = most;
  }

  /** Adds a damage. */
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

  /** Damages of whole files first, then in guest order. If some were left out, the last entry says so. */
  list(): Damage[] {
    const sorted = this.#list.toSorted((a, b) => (a.guestOffset ?? -1) - (b.guestOffset ?? -1));
    return this.#omitted ? [...sorted, { message: "and more; the rest is not listed" }] : sorted;
  }
}
