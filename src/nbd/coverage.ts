/**
 * Tracks exactly which bytes of a request have arrived. A sum of bytes would not do: a server that sends one
 * half twice and the other never would seem to have sent everything.
 */

import { ProtocolError } from "./errors.js";

/** Most separate stretches to track; a server that sends more is misbehaving. */
const MAX_STRETCHES = 65_536;

export class Coverage {
  readonly #length: number;
  /** Starts and ends of the covered stretches, ascending and not adjacent: [start, end, start, end, ...]. */
  readonly #edges: number[] = [];

  /** @param length bytes to cover, from 0 on */
  constructor(length: number) {
    this.#length = length;
  }

  get complete(): boolean {
    return this.#edges.length === 2 && this.#edges[0] === 0 && this.#edges[1] === this.#length;
  }

  /**
   * Notes that [start, end) has arrived.
   * @throws {ProtocolError} if it is outside of the request, or if a part of it has arrived before
   */
  add(start: number, end: number): void {
    if (start < 0 || start >= end || end > this.#length) {
      throw new ProtocolError(
        `the server sent bytes ${start} to ${end} of a read that is ${this.#length} bytes long`,
      );
    }
    const at = this.#firstEdgeAbove(start);
    // An odd index means that `start` lies within a covered stretch.
    if (at % 2 === 1 || end > this.#edge(at)) {
      throw new ProtocolError(`the server sent bytes ${start} to ${end} of a read twice`);
    }
    const joinsBefore = at > 0 && this.#edge(at - 1) === start;
    const joinsAfter = this.#edge(at) === end;
    if (joinsBefore && joinsAfter) this.#edges.splice(at - 1, 2);
    else if (joinsBefore) this.#edges[at - 1] = end;
    else if (joinsAfter) this.#edges[at] = start;
    else this.#edges.splice(at, 0, start, end);
    if (this.#edges.length > 2 * MAX_STRETCHES) {
      throw new ProtocolError("the server sent a read in more pieces than can be sensible");
    }
  }

  #edge(index: number): number {
    return this.#edges[index] ?? Number.POSITIVE_INFINITY;
  }

  /**
   * Index of the first edge greater than `position`. Chunks mostly arrive in order, so the end is tried
   * first.
   */
  #firstEdgeAbove(position: number): number {
    let high = this.#edges.length;
    if (high === 0 || this.#edge(high - 1) <= position) return high;
    let low = 0;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#edge(middle) > position) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}
