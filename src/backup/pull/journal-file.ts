import { createHmac, timingSafeEqual } from "node:crypto";
import { DamageError, hasCode } from "../base/errors.js";
import { parseJson } from "../base/json.js";
import { isMissing } from "../host/durable-files.js";
import { ImageFile } from "../image/image-file.js";

const MAC_BYTES = 32;
/** Length of the record, then its code. */
const HEAD_BYTES = 4 + MAC_BYTES;
/** A longer record is not ours. */
const MOST_RECORD_BYTES = 16 * 1024 * 1024;

interface FoundRecord {
  readonly value: unknown;
  readonly end: number;
  readonly mac: Buffer;
}

/**
 * A file of JSON records that is only appended to, and read by the next run after a crash. Others may write
 * to its folder, so each record carries an authentication code (HMAC-SHA256) under a key that lies elsewhere;
 * the code covers all records before it too. So a record that is torn, changed, moved or of another file ends
 * what can be read, and so does everything behind it.
 *
 *     |length (4, big endian)|code (32)|JSON|length|code|JSON|...     the first record is the header
 */
export class JournalFile {
  readonly #file: ImageFile;
  readonly #key: Buffer;
  /** Where the next record goes, and the code of the one before it. */
  #end = 0;
  #mac: Buffer = Buffer.alloc(0);
  /** What `next` has found last. */
  #found: FoundRecord | undefined;

  private constructor(file: ImageFile, key: Buffer) {
    this.#file = file;
    this.#key = key;
  }

  /**
   * Creates the file with its header.
   * @throws the file system's error: EEXIST
   */
  static async create(path: string, key: Buffer, header: unknown): Promise<JournalFile> {
    const file = await ImageFile.create(path);
    try {
      const journal = new JournalFile(file, key);
      await journal.append(header);
      return journal;
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /**
   * Opens a journal that another run left, to be read and continued. A link is not followed.
   * @returns undefined if there is none, if something else has its name, or if it is not of this key
   */
  static async open(
    path: string,
    key: Buffer,
  ): Promise<{ readonly journal: JournalFile; readonly header: unknown } | undefined> {
    let file: ImageFile;
    try {
      file = await ImageFile.openForWriting(path);
    } catch (error) {
      if (isMissing(error) || hasCode(error, "EISDIR") || error instanceof DamageError) return undefined;
      throw error;
    }
    const journal = new JournalFile(file, key);
    let header: unknown;
    try {
      header = await journal.next();
      if (header !== undefined) {
        journal.accept();
        return { journal, header };
      }
    } finally {
      if (header === undefined) await file.close();
    }
    return undefined;
  }

  /** The record behind the accepted ones; undefined where there is none that can be trusted. */
  async next(): Promise<unknown> {
    this.#found = undefined;
    const head = Buffer.alloc(HEAD_BYTES);
    if ((await this.#file.read(head, this.#end)) < HEAD_BYTES) return undefined;
    const length = head.readUInt32BE(0);
    if (length === 0 || length > MOST_RECORD_BYTES) return undefined;
    const payload = Buffer.alloc(Math.min(length, (await this.#file.size()) - this.#end - HEAD_BYTES));
    if (payload.length < length || (await this.#file.read(payload, this.#end + HEAD_BYTES)) < length) {
      return undefined;
    }
    const mac = this.#macOf(payload);
    if (!timingSafeEqual(mac, head.subarray(4))) return undefined;
    const value = parseJson(payload.toString("utf8"));
    this.#found = { value, end: this.#end + HEAD_BYTES + length, mac };
    return value;
  }

  /** The record that `next` gave stays; what is appended comes behind it. */
  accept(): void {
    if (this.#found === undefined) throw new Error("there is no record to accept");
    this.#end = this.#found.end;
    this.#mac = this.#found.mac;
  }

  /** Cuts off what was not accepted. */
  async cut(): Promise<void> {
    await this.#file.truncate(this.#end);
  }

  async append(record: unknown): Promise<void> {
    const payload = Buffer.from(JSON.stringify(record));
    const mac = this.#macOf(payload);
    const head = Buffer.alloc(4);
    head.writeUInt32BE(payload.length);
    const bytes = Buffer.concat([head, mac, payload]);
    await this.#file.write(bytes, this.#end);
    this.#end += bytes.length;
    this.#mac = mac;
  }

  /** Flushes the records to stable storage. */
  async datasync(): Promise<void> {
    await this.#file.datasync();
  }

  async close(): Promise<void> {
    await this.#file.close();
  }

  #macOf(payload: Buffer): Buffer {
    return createHmac("sha256", this.#key).update(this.#mac).update(payload).digest();
  }
}
