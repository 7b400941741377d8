import type { TableRun } from "./tables.js";

/** Runs are kept in chunks, so that growing never copies. */
const CHUNK_RUNS = 4096;
/** cluster, count, host cluster or host offset, bytes of the stream (0: none), data mask, zero mask. */
const FIELDS = 6;

/** Runs in guest order whose places in the file may be anywhere; 48 bytes each. */
export class TableRunList implements Iterable<TableRun> {
  readonly #chunks: Float64Array[] = [];
  #length = 0;
  #last: TableRun | undefined;
  #hasPartial = false;

  /** Whether some cluster is defined only in part, or is partly zero. */
  get hasPartial(): boolean {
    return this.#hasPartial;
  }

  append(run: TableRun): void {
    if (run.streamBytes === undefined && run.dataMask !== 0 && run.zeroMask !== 0) this.#hasPartial = true;
    if (run.streamBytes === undefined && (run.dataMask | run.zeroMask) !== -1) this.#hasPartial = true;
    if (this.#last && continues(this.#last, run)) {
      this.#last = { ...this.#last, count: this.#last.count + run.count };
      return;
    }
    if (this.#last) this.#push(this.#last);
    this.#last = run;
  }

  *[Symbol.iterator](): Generator<TableRun> {
    for (let i = 0; i < this.#length; i += 1) {
      const at = (i % CHUNK_RUNS) * FIELDS;
      const chunk = this.#chunks[Math.floor(i / CHUNK_RUNS)] as Float64Array;
      const [cluster = 0, count = 0, place = 0, streamBytes = 0, dataMask = 0, zeroMask = 0] = chunk.subarray(
        at,
        at + FIELDS,
      );
      if (streamBytes > 0) yield { cluster, count: 1, hostOffset: place, streamBytes };
      else yield { cluster, count, hostCluster: place, dataMask, zeroMask };
    }
    if (this.#last) yield this.#last;
  }

  #push(run: TableRun): void {
    const at = (this.#length % CHUNK_RUNS) * FIELDS;
    if (at === 0) this.#chunks.push(new Float64Array(CHUNK_RUNS * FIELDS));
    const chunk = this.#chunks.at(-1) as Float64Array;
    if (run.streamBytes !== undefined) chunk.set([run.cluster, 1, run.hostOffset, run.streamBytes, 0, 0], at);
    else chunk.set([run.cluster, run.count, run.hostCluster, 0, run.dataMask, run.zeroMask], at);
    this.#length += 1;
  }
}

function continues(last: TableRun, next: TableRun): last is Exclude<TableRun, { streamBytes: number }> {
  if (last.streamBytes !== undefined || next.streamBytes !== undefined) return false;
  if (next.cluster !== last.cluster + last.count) return false;
  if (next.dataMask !== last.dataMask || next.zeroMask !== last.zeroMask) return false;
  return next.dataMask === 0 || next.hostCluster === last.hostCluster + last.count;
}
