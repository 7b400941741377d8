import type { NewFile } from "../image/new-file.js";
import type { ObjectUpload } from "../s3/upload.js";

/** An object as a file that is being made. */
export class UploadedFile implements NewFile {
  readonly path: string;
  readonly leftBytes: number;
  readonly #upload: ObjectUpload;

  constructor(path: string, upload: ObjectUpload) {
    this.path = path;
    this.leftBytes = upload.leftBytes;
    this.#upload = upload;
  }

  async write(data: Uint8Array, position: number): Promise<void> {
    await this.#upload.write(data, position);
  }

  writeNow(data: Uint8Array, position: number): void {
    this.#upload.writeNow(data, position);
  }

  async capacity(): Promise<void> {
    await this.#upload.capacity();
  }

  async truncate(length: number): Promise<void> {
    this.#upload.truncate(length);
  }

  /** Only whole objects are on stable storage. */
  async datasync(): Promise<void> {}

  async sync(): Promise<void> {}

  async finish(): Promise<void> {
    await this.#upload.finish();
  }

  async close(): Promise<void> {
    await this.#upload[Symbol.asyncDispose]();
  }
}
