import { type ConnectOptions, type NbdAddress, NbdClient } from "../../nbd/index.js";
import { PreconditionError } from "../base/errors.js";
import { CONNECTIONS } from "../export/open-export.js";
import { type BlockTarget, ZERO_BLOCK, zeroByHand } from "./block-target.js";

/** Minimum block size in bytes if the server states none. The NBD specification recommends it to clients. */
const DEFAULT_BLOCK = 512;

/**
 * A writable export. WRITE_ZEROES makes zeroes, and lets the server make holes. If the server doesn't have
 * it, zeroes are written where needed. TRIM is never sent, because trimmed bytes need not read as zeroes.
 *
 * A lost connection fails the restore, because writes over it that were not flushed may be lost too.
 */
export class ExportTarget implements BlockTarget {
  readonly name: string;
  readonly size: number;
  readonly writable: number;
  readonly preferredBlock: number | undefined;
  readonly #client: NbdClient;
  /** Minimum block size in bytes: writes must consist of whole blocks. */
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
   * @param name the target's name in messages
   * @param address an NBD URI, or a parsed one
   * @throws {PreconditionError} `E_TARGET_READ_ONLY`: the export is read-only
   * @throws {NbdError} the connection or the negotiation failed
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

  /** False if the server has no FLUSH. Then only the server decides when bytes reach stable storage. */
  get canFlush(): boolean {
    return this.#client.export.canFlush;
  }

  /** Number of live connections. */
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
    // In the last block, the bytes behind the disk must stay as they are.
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

  /** How many of the bytes form whole blocks; all of them if they reach the end of the export. */
  #wholeBlocks(offset: number, length: number): number {
    const end = offset + length;
    return end === this.size ? length : length - (end % this.#block);
  }
}
