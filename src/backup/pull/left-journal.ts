import { isDeepStrictEqual } from "node:util";
import type { JournalEntry } from "./journal-entry.js";
import { JournalFile } from "./journal-file.js";
import { entryOf } from "./left-entry.js";

/** A journal of an image that a pull fills, for the run after this one if this one is killed. */
export interface JournalTarget {
  readonly path: string;
  /** The secret of the job that the image is pulled from. Whoever does not know it can write no journal. */
  readonly key: Buffer;
  /** What the image is of: it is continued only if all of this is the same. JSON. */
  readonly facts: Readonly<Record<string, unknown>>;
  /** Continue the image that the journal describes, if there is one. */
  readonly resume: boolean;
}

/** The journal of an image that a run that died has begun. */
export class LeftJournal {
  readonly #file: JournalFile;
  readonly header: unknown;

  private constructor(file: JournalFile, header: unknown) {
    this.#file = file;
    this.header = header;
  }

  /** Undefined: there is none, or it is not of this key. */
  static async open({ path, key }: Pick<JournalTarget, "path" | "key">): Promise<LeftJournal | undefined> {
    const found = await JournalFile.open(path, key);
    return found && new LeftJournal(found.journal, found.header);
  }

  isOf(header: unknown): boolean {
    return isDeepStrictEqual(this.header, JSON.parse(JSON.stringify(header)));
  }

  /**
   * Gives each entry to `keep`, until one is not kept. What comes after the kept ones is cut off.
   * @returns the journal, to be continued
   */
  async replay(keep: (entry: JournalEntry) => Promise<boolean>): Promise<JournalFile> {
    for (;;) {
      const found = entryOf(await this.#file.next());
      if (found === undefined || !(await keep(found))) break;
      this.#file.accept();
    }
    await this.#file.cut();
    return this.#file;
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}
