/**
 * Which bytes of a request have come, exactly. A byte sum would not do: a server that sends one half twice
 * and the other never would pass for complete.
 */

import { ProtocolError } from "./errors.js";

/** Separate stretches that are kept track of; more is a server bent on wasting our time. */
const MAX_STRETCHES = 65_536;

export class Coverage {
  readonly #length: number;
  /** Starts and ends of what is covered, ascending and never touching: [start, end, start, end, ...]. */
  readonly #edges: number[] = [];

  /** @param length bytes to cover, from 0 on */
  constructor(length: number) {
    this.#length = length;
  }

  get complete(): boolean {
    return this.#edges.length === 2 && this.#edges[0] === 0 && this.#edges[1] === this.#length;
  }

  /**
   * Notes that [start, end) has come.
   * @throws {ProtocolError} when it is outside of the request, or when a part of it has come before
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

  /** Index of the first edge greater than `position`; chunks mostly come in order, so the end is tried first. */
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
