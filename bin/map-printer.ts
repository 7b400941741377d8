import type { StatusRuns } from "../src/nbd/index.js";
import { MapRecord, type RecordLayout } from "./map-record.js";
import type { ResultStream } from "./result-stream.js";

/** How a map is written down: records that end with a separator of one byte, and what goes around them. */
export interface MapForm {
  readonly start: string;
  /** Of extents with these flags, the separator included. */
  layoutOf(flags: number): RecordLayout;
  /** Sees each extent, if it wants to. */
  readonly note?: (offset: number, length: number, flags: number) => void;
  /** What comes in place of the last separator. */
  end(): string;
}

/** Different flags whose records are kept ready; a context may have any number of them. */
const MAX_RECORDS = 256;

/** Puts the extents of a context into a stream, one record each; equal neighbours of different batches are joined. */
export class MapPrinter {
  readonly #form: MapForm;
  readonly #stream: ResultStream;
  readonly #records = new Map<number, MapRecord>();
  /** Of the extent that may go on in the next batch. */
  #record: MapRecord | undefined;
  #flags = Number.NaN;
  #offset = 0;
  #end = 0;

  constructor(form: MapForm, stream: ResultStream) {
    this.#form = form;
    this.#stream = stream;
    stream.append(Buffer.from(form.start));
  }

  /** The extents that follow those before them; the first ones begin at the beginning of the disk. */
  add({ ends, flags }: StatusRuns): void {
    const stream = this.#stream;
    const { note } = this.#form;
    let record = this.#record;
    let current = this.#flags;
    let offset = this.#offset;
    let end = this.#end;
    for (let index = 0; index < ends.length; index += 1) {
      const next = flags[index] ?? 0;
      if (next !== current) {
        if (record !== undefined) stream.append(record.of(offset, end - offset));
        if (note !== undefined && end > offset) note(offset, end - offset, current);
        record = this.#records.get(next) ?? this.#newRecord(next);
        current = next;
        offset = end;
      }
      end = ends[index] ?? end;
    }
    this.#record = record;
    this.#flags = current;
    this.#offset = offset;
    this.#end = end;
  }

  end(): void {
    const length = this.#end - this.#offset;
    if (this.#record !== undefined) {
      this.#stream.append(this.#record.of(this.#offset, length));
      this.#form.note?.(this.#offset, length, this.#flags);
      this.#stream.takeBack(1);
    }
    this.#stream.append(Buffer.from(this.#form.end()));
  }

  #newRecord(flags: number): MapRecord {
    if (this.#records.size >= MAX_RECORDS) this.#records.clear();
    const record = new MapRecord(this.#form.layoutOf(flags));
    this.#records.set(flags, record);
    return record;
  }
}
