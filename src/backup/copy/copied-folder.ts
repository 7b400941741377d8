import type { FilePlace } from "../image/readable-file.js";
import type { StoredEntry, StoredFolder, StoredStatus } from "../storage/stored-folder.js";
import type { CopiedFile } from "./copied-file.js";

/** The folder of a point whose files were copied: what is read of them is what was copied. */
export class CopiedFolder implements StoredFolder {
  readonly path: string;
  readonly foldersAppearWhole: boolean;
  readonly #from: StoredFolder;
  readonly #files: ReadonlyMap<string, CopiedFile>;

  /** @param from belongs to it from here on */
  constructor(from: StoredFolder, files: ReadonlyMap<string, CopiedFile>) {
    this.path = from.path;
    this.foldersAppearWhole = from.foldersAppearWhole;
    this.#from = from;
    this.#files = files;
  }

  async folder(name: string): Promise<StoredFolder | undefined> {
    return await this.#from.folder(name);
  }

  async entries(): Promise<readonly StoredEntry[]> {
    return await this.#from.entries();
  }

  async names(): Promise<readonly string[]> {
    return await this.#from.names();
  }

  async find(name: string): Promise<StoredStatus | undefined> {
    return await this.#from.find(name);
  }

  async read(name: string, most: number): Promise<Buffer> {
    return await this.#from.read(name, most);
  }

  at(name: string): FilePlace {
    return this.#files.get(name) ?? this.#from.at(name);
  }

  async close(): Promise<void> {
    await this.#from.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
