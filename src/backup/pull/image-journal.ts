import { type JournalEntry, recordOf } from "./journal-entry.js";
import type { JournalFile } from "./journal-file.js";

/** Guest data that a killed run stores without a journal entry is pulled again, so it should be little. */
const FLUSH_BYTES = 16 * 1024 * 1024;
const FLUSH_AFTER_MS = 2000;
/** Most runs and digests in a record. */
const MOST_IN_RECORD = 1024;

interface Followed {
  /** Has everything in the file that was stored so far, with `sync` on stable storage. */
  settle(options: { readonly sync: boolean }): Promise<void>;
}

/**
 * Notes what an image has stored, some seconds behind it. Each flush first has the image's data on stable
 * storage and then the record that describes it. A pull that ends sooner writes no journal at all.
 */
export class ImageJournal implements AsyncDisposable {
  readonly #create: () => Promise<JournalFile>;
  readonly #sync: boolean;
  #file: JournalFile | undefined;
  #image: Followed | undefined;
  #waiting: JournalEntry[] = [];
  #waitingBytes = 0;
  #timer: NodeJS.Timeout | undefined;
  #flushing: Promise<void> | undefined;
  #failure: { readonly reason: unknown } | undefined;
  #closed = false;

  /**
   * @param options.create makes the file, for the first flush
   * @param options.sync flush to stable storage
   */
  constructor(options: { readonly create: () => Promise<JournalFile>; readonly sync: boolean }) {
    this.#create = options.create;
    this.#sync = options.sync;
  }

  /** Names the image whose clusters are noted. */
  follow(image: Followed): void {
    this.#image = image;
  }

  /** Goes on with a file that an earlier run left, and closes it in the end. */
  continue(file: JournalFile): void {
    this.#file = file;
  }

  /** Notes what is in the image file. Its flush comes later. */
  add(noted: JournalEntry, bytes: number): void {
    this.#waiting.push(noted);
    this.#waitingBytes += bytes;
    this.#schedule();
  }

  /** @throws the first failure of a flush, which may mean that data is lost */
  assertWhole(): void {
    if (this.#failure !== undefined) throw this.#failure.reason;
  }

  /**
   * Flushes what is left, if there is a journal: the image is complete but for its tables. No flush runs
   * after it. The kernel tells one flush of a file alone that data is lost, and from here on that must be the
   * image's own.
   * @throws as `assertWhole`
   */
  async complete(): Promise<void> {
    await this.#end();
    this.assertWhole();
    if (this.#file && this.#waiting.length > 0) await this.#flush();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#end();
    await this.#file?.close();
  }

  /** Begins no flush any more, and waits for the one that runs. */
  async #end(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    while (this.#flushing) await this.#flushing;
  }

  #schedule(): void {
    if (this.#closed || this.#flushing || this.#failure || this.#waiting.length === 0) return;
    if (this.#waitingBytes < FLUSH_BYTES) {
      this.#timer ??= setTimeout(() => this.#start(), FLUSH_AFTER_MS);
    } else this.#start();
  }

  #start(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#flushing = this.#flush()
      .catch((reason: unknown) => {
        this.#failure ??= { reason };
      })
      .finally(() => {
        this.#flushing = undefined;
        this.#schedule();
      });
  }

  async #flush(): Promise<void> {
    const entries = this.#waiting;
    this.#waiting = [];
    this.#waitingBytes = 0;
    await this.#image?.settle({ sync: this.#sync });
    this.#file ??= await this.#create();
    for (let from = 0; from < entries.length; ) {
      let to = from;
      for (let size = 0; to < entries.length && size < MOST_IN_RECORD; to += 1) {
        const { runs = [], digests } = entries[to] ?? {};
        size += runs.length + (digests?.length ?? 0) / 32;
      }
      await this.#file.append(recordOf(entries.slice(from, to)));
      from = to;
    }
    if (this.#sync) await this.#file.datasync();
  }
}
