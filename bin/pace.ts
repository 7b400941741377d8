/**
 * How fast a disk was read lately: over some seconds, so that it neither jumps nor remembers a slow
 * beginning.
 */

const WINDOW_MS = 15_000;
/** Samples are kept this far apart. */
const STEP_MS = 500;

interface Sample {
  readonly at: number;
  readonly position: number;
  readonly readBytes: number;
}

export class Pace {
  #samples: Sample[] = [];
  /** On the disk, in bytes. */
  position = 0;
  /** What was read to get there. */
  readBytes = 0;

  /** @param now in milliseconds, of a clock that never goes back */
  note(position: number, readBytes: number, now: number): void {
    // Another point of the disk begins.
    if (position < this.position) this.#samples = [];
    this.position = position;
    this.readBytes = readBytes;
    const last = this.#samples.at(-1);
    if (last && now - last.at < STEP_MS) return;
    this.#samples.push({ at: now, position, readBytes });
    while ((this.#samples[1]?.at ?? now) < now - WINDOW_MS) this.#samples.shift();
  }

  /** @returns `secondsLeft` is undefined while nothing tells how long it takes */
  at(
    total: number,
    now: number,
  ): { readonly readPerSecond: number; readonly secondsLeft: number | undefined } {
    const [first] = this.#samples;
    const seconds = first ? (now - first.at) / 1000 : 0;
    if (!first || seconds < 0.1) return { readPerSecond: 0, secondsLeft: undefined };
    const perSecond = (this.position - first.position) / seconds;
    return {
      readPerSecond: (this.readBytes - first.readBytes) / seconds,
      secondsLeft: perSecond > 0 && seconds >= 1 ? (total - this.position) / perSecond : undefined,
    };
  }
}
