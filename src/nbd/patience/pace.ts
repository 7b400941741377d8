/**
 * Whether a peer keeps a minimum rate. It may fall behind by as much as it should move within a grace time:
 * a peer just above the rate is never too slow, and one that moves nothing is after that time.
 */
export class Pace {
  readonly #bytesPerMs: number;
  readonly #mostOwed: number;
  #owed = 0;

  /** @param bytesPerSecond 0: any pace will do */
  constructor(bytesPerSecond: number, graceMs: number) {
    this.#bytesPerMs = bytesPerSecond / 1000;
    this.#mostOwed = this.#bytesPerMs * graceMs;
  }

  /** Notes that the peer moved `bytes` in `ms`, during which it was expected to. */
  note(ms: number, bytes: number): void {
    this.#owed = Math.max(0, this.#owed + ms * this.#bytesPerMs - bytes);
  }

  get isTooSlow(): boolean {
    return this.#mostOwed > 0 && this.#owed >= this.#mostOwed;
  }
}
