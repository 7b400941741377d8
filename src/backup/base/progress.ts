/** How often people are told: more than they can see costs, and shows nothing. */
const EVERY_MS = 100;

/** Tells of progress now and then, and of the last state in any case. */
export class Progress<T> {
  readonly #tell: ((state: T) => void) | undefined;
  #told = 0;
  #untold: T | undefined;

  constructor(tell: ((state: T) => void) | undefined) {
    this.#tell = tell;
  }

  note(state: T): void {
    this.#untold = state;
    const now = performance.now();
    if (now - this.#told < EVERY_MS) return;
    this.#told = now;
    this.finish();
  }

  /** Nothing more will come. */
  finish(): void {
    if (this.#untold !== undefined) this.#tell?.(this.#untold);
    this.#untold = undefined;
  }
}
