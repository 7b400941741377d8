import { type ConnectOptions, type NbdAddress, NbdClient } from "../../nbd/index.js";
import { PreconditionError } from "../base/errors.js";
import { CONNECTIONS } from "../export/open-export.js";
import { type BlockTarget, ZERO_BLOCK, zeroByHand } from "./block-target.js";

/** What a client without better knowledge keeps to. */
const DEFAULT_BLOCK = 512;

/**
 * A writable export. Zeroes are made by WRITE_ZEROES, which leaves it to the server to make holes; where there is no such
 * command, by hand. TRIM is never sent: nothing promises that what was trimmed reads as zeroes.
 *
 * A connection that is lost fails the restore: what was written over it and not flushed may be lost with it.
 */
export class ExportTarget implements BlockTarget {
  readonly name: string;
  readonly size: number;
  readonly writable: number;
  readonly preferredBlock: number | undefined;
  readonly #client: NbdClient;
  /** Writes have to be of whole blocks. */
  readonly #block: number;
  #touched = false;

  private constructor(name: string, client: NbdClient) {
    this.name = name;
    const { size, blockSize } = client.export;
    this.size = size;
    this.writable = size - (size % (blockSize?.minimum ?? 1));
    this.preferredBlock = blockSize?.preferred;
    this.#client = client;
    this.#block = blockSize?.minimum ?? DEFAULT_BLOCK;
  }

  /**
   * @param name for messages
   * @throws {PreconditionError} the export is read-only
   * @throws {NbdError}
   */
  static async open(
    name: string,
    address: string | NbdAddress,
    options: ConnectOptions,
  ): Promise<ExportTarget> {
    const client = await NbdClient.connect(address, { connections: CONNECTIONS, ...options });
    if (!client.export.readOnly) return new ExportTarget(name, client);
    await client.close();
    const message = `the export at ${name} is read-only: serve it writable, or name another`;
    throw new PreconditionError("E_TARGET_READ_ONLY", message, { details: { target: name } });
  }

  /** False where the server has no FLUSH: when bytes reach stable storage is up to it then. */
  get canFlush(): boolean {
    return this.#client.export.canFlush;
  }

  /** Live ones. */
  get connections(): number {
    return this.#client.connections;
  }

  get touched(): boolean {
    return this.#touched;
  }

  async write(offset: number, data: Uint8Array, signal: AbortSignal): Promise<void> {
    this.#touched = true;
    const whole = this.#wholeBlocks(offset, data.length);
    if (whole === data.length) {
      await this.#client.write(offset, data, { signal });
      return;
    }
    // What lies behind the disk in its last block stays as it is.
    const last = offset + whole;
    const block = new Uint8Array(Math.min(this.#block, this.size - last));
    await this.#client.read(last, block, { signal });
    block.set(data.subarray(whole));
    await this.#client.write(last, block, { signal });
    if (whole > 0) await this.#client.write(offset, data.subarray(0, whole), { signal });
  }

  async zero(offset: number, length: number, signal: AbortSignal): Promise<void> {
    if (!this.#client.export.canWriteZeroes) {
      const access = {
        read: (at: number, target: Uint8Array) => this.#client.read(at, target, { signal }),
        write: (at: number, data: Uint8Array) => this.write(at, data, signal),
      };
      await zeroByHand(access, offset, length, signal);
      return;
    }
    this.#touched = true;
    const whole = this.#wholeBlocks(offset, length);
    if (whole > 0) await this.#client.writeZeroes(offset, whole, { signal });
    if (whole < length) await this.write(offset + whole, ZERO_BLOCK.subarray(0, length - whole), signal);
  }

  async flush(signal: AbortSignal | undefined): Promise<void> {
    if (this.canFlush) await this.#client.flush(signal ? { signal } : {});
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#client.close();
  }

  /** How many of the bytes from `offset` on are whole blocks: all, where they go up to the export's end. */
  #wholeBlocks(offset: number, length: number): number {
    const end = offset + length;
    return end === this.size ? length : length - (end % this.#block);
  }
}
