import type { PieceSink } from "../../nbd/index.js";
import {
  type ConnectOptions,
  DIRTY,
  MetaContextError,
  type NbdAddress,
  NbdClient,
  OptionError,
  RequestError,
  type Stretch,
} from "../../nbd/index.js";
import { PreconditionError } from "../base/errors.js";
import { ALLOCATION_CONTEXT, dirtyContext } from "./export-extents.js";

export type OpenOptions = Omit<ConnectOptions, "metaContexts" | "optionalContexts">;

/**
 * Connects to an export for a backup: the bitmap, where one is named, is mandatory; allocation is taken where the
 * server has it and can tell of it wherever the bitmap can.
 *
 * @throws {PreconditionError} no such export, no such bitmap
 * @throws {NbdError} anything else that goes wrong on the wire
 */
export async function openExport(
  target: string | NbdAddress,
  bitmap: string | undefined,
  options: OpenOptions,
): Promise<NbdClient> {
  const client = await connect(target, bitmap, [ALLOCATION_CONTEXT], options);
  if (bitmap === undefined || !client.export.contexts.includes(ALLOCATION_CONTEXT)) return client;
  try {
    if (await isMappedWhereClean(client, dirtyContext(bitmap), options.signal)) return client;
  } catch (error) {
    await client.close();
    throw error;
  }
  await client.close();
  return await connect(target, bitmap, [], options);
}

/**
 * QEMU's snapshot-access exports fail a block status that touches a clean byte, for all contexts together: what is
 * dirty can be learned there without the allocation only. The first reply that tells of a clean byte settles it.
 */
async function isMappedWhereClean(
  client: NbdClient,
  dirtyName: string,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  try {
    for await (const { runs } of client.blockStatus(signal ? { signal } : {})) {
      if (runs.get(dirtyName)?.flags.some((flags) => (flags & DIRTY) === 0)) break;
    }
    return true;
  } catch (error) {
    if (error instanceof RequestError && error.code === "NBD_REQUEST_FAILED") return false;
    throw error;
  }
}

/** What QEMU copies before a guest's write at the least; a larger unit is a multiple of it. */
const SNAPSHOT_BLOCK = 64 * 1024;

/**
 * How to read from an export that `openExport` opened.
 *
 * In QEMU 7 a snapshot-access read that begins in a block that the guest has overwritten since, and goes on into one
 * that it hasn't, returns the guest's new bytes for the first (mended in 8.0, `hbitmap_status`). A read within one block
 * is always right. Extended headers came with 8.2, so who speaks them has no need of that.
 */
export function readerOf(client: NbdClient, bitmap: string | undefined): ByteSource {
  if (mayReadClean(client, bitmap) || client.export.protocol === "extended") return client;
  return {
    readPieces: (stretches, sink, options) =>
      client.readPieces(
        stretches.flatMap((stretch) => [...blocksOf(stretch)]),
        sink,
        options,
      ),
  };
}

function* blocksOf({ offset, length }: Stretch): Generator<Stretch> {
  for (let done = 0; done < length; ) {
    const count = Math.min(SNAPSHOT_BLOCK - ((offset + done) % SNAPSHOT_BLOCK), length - done);
    yield { offset: offset + done, length: count };
    done += count;
  }
}

/** How many connections a pull begins with: of those that are encrypted one keeps both sides busy, and two get in each other's way. */
export function fewestConnections(client: NbdClient): number {
  return client.isEncrypted ? 1 : CONNECTIONS;
}

/** Whether clean bytes can be read too: where they can't, they have no allocation either, and `openExport` went without. */
export function mayReadClean(client: NbdClient, bitmap: string | undefined): boolean {
  return bitmap === undefined || client.export.contexts.includes(ALLOCATION_CONTEXT);
}

async function connect(
  target: string | NbdAddress,
  bitmap: string | undefined,
  optionalContexts: readonly string[],
  options: OpenOptions,
): Promise<NbdClient> {
  try {
    const client = await NbdClient.connect(target, {
      ...options,
      metaContexts: bitmap === undefined ? [] : [dirtyContext(bitmap)],
      optionalContexts,
    });
    if (options.connections === undefined) client.widen(fewestConnections(client));
    return client;
  } catch (cause) {
    if (cause instanceof MetaContextError && bitmap !== undefined) {
      const message = `the export has no dirty bitmap "${bitmap}": nothing was copied. List what it has with "nbdpull info", or leave the bitmap out for a full copy (${cause.message})`;
      throw new PreconditionError("E_NO_BITMAP", message, { cause, details: { bitmap } });
    }
    if (cause instanceof OptionError && cause.code === "NBD_EXPORT_UNKNOWN") {
      const message = `${cause.message}. List what the server has with "nbdpull info --list"`;
      throw new PreconditionError("E_NO_EXPORT", message, { cause });
    }
    throw cause;
  }
}

/** Where bytes come from: an NBD client, or the chain of a restore. */
export interface ByteSource {
  /** Hands all bytes of the stretches to `sink`, in pieces, or throws; none any more once `signal` has fired. */
  readPieces(
    stretches: readonly Stretch[],
    sink: PieceSink,
    options: { readonly signal: AbortSignal },
  ): Promise<void>;
}

/** A second connection lets the server fill one while the other is being emptied. */
export const CONNECTIONS = 2;
