import type { StatusRuns } from "../src/nbd/index.js";
import { MapRecord, type RecordLayout } from "./map-record.js";
import type { ResultStream } from "./result-stream.js";

/** The format of a map: records that end with a one-byte separator, and the text around them. */
export interface MapForm {
  readonly start: string;
  /** The record format for extents with these flags, including the separator. Absent: no records. */
  layoutOf?(flags: number): RecordLayout;
  /** Called for each extent, if present. */
  readonly note?: (offset: number, length: number, flags: number) => void;
  /** Replaces the last separator. */
  end(): string;
}

/** Most flag values whose records are cached; a context may have any number of them. */
const MAX_RECORDS = 256;

/**
 * Writes the extents of a context to a stream, one record each. Equal neighbours from different batches are
 * merged.
 */
export class MapPrinter {
  readonly #form: MapForm;
  readonly #stream: ResultStream;
  readonly #records = new Map<number, MapRecord>();
  /** The extent that may continue in the next batch. */
  #record: MapRecord | undefined;
  #flags = Number.NaN;
  #offset = 0;
  #end = 0;

  constructor(form: MapForm, stream: ResultStream) {
    this.#form = form;
    this.#stream = stream;
    stream.append(Buffer.from(form.start));
  }

  /** Prints extents that follow the previous ones; the first ones start at the beginning of the disk. */
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
    if (length > 0) this.#form.note?.(this.#offset, length, this.#flags);
    if (this.#record !== undefined) {
      this.#stream.append(this.#record.of(this.#offset, length));
      this.#stream.takeBack(1);
    }
    this.#stream.append(Buffer.from(this.#form.end()));
  }

  #newRecord(flags: number): MapRecord | undefined {
    if (this.#form.layoutOf === undefined) return undefined;
    if (this.#records.size >= MAX_RECORDS) this.#records.clear();
    const record = new MapRecord(this.#form.layoutOf(flags));
    this.#records.set(flags, record);
    return record;
  }
}
