/**
 * Connects to the NBD export of a disk and learns which bytes a backup has to copy: data, zeroes, or clean
 * since the checkpoint. Read this file first: it chooses the meta contexts and the way to read. Then read
 * `export-extents.ts`, which asks for the block status of the whole disk, and `extent-algebra.ts`, which
 * combines the dirty bitmap with the allocation.
 *
 * Nothing here ever writes, to the export or to a file, and nothing here knows libvirt, image formats or
 * repositories.
 */

import type { PieceSink } from "../../nbd/index.js";
import {
  type ConnectOptions,
  DIRTY,
  MetaContextError,
  type NbdAddress,
  NbdClient,
  OptionError,
  RequestError,
  type StatusOptions,
  type Stretch,
} from "../../nbd/index.js";
import { PreconditionError } from "../base/errors.js";
import { ALLOCATION_CONTEXT, dirtyContext } from "./export-extents.js";

export interface OpenOptions extends Omit<ConnectOptions, "metaContexts" | "optionalContexts"> {
  /**
   * Open one connection, and leave it to the pull to open more: a small disk needs no second one. Not for the
   * exports of a job: QEMU 7.2 hangs if one is ended while a client is in its handshake. Default: false.
   * Without effect where `connections` is given.
   */
  readonly widensLater?: boolean | undefined;
}

/**
 * Connects to an export for a backup. A bitmap that is named is mandatory. The allocation is used if the
 * server has it and can report it everywhere that it can report the bitmap. The other connections that a pull
 * has from its first segment on are opened in the background.
 *
 * @param opened receives every client as soon as it is connected, and the caller closes it. Without it, only
 *   the client that is returned stays open.
 * @throws {PreconditionError} no such export, no such bitmap
 * @throws {NbdError} anything else that goes wrong on the wire
 */
export async function openExport(
  target: string | NbdAddress,
  bitmap: string | undefined,
  options: OpenOptions,
  opened?: NbdClient[],
): Promise<NbdClient> {
  const { widensLater = false, ...connecting } = options;
  const client = await openMapped(target, bitmap, connecting, opened);
  if (!widensLater && options.connections === undefined) client.widen(fewestConnections(client));
  return client;
}

async function openMapped(
  target: string | NbdAddress,
  bitmap: string | undefined,
  options: ConnectOptions,
  opened: NbdClient[] | undefined,
): Promise<NbdClient> {
  // An abort would hang up in the moment in which the server opens the export, which not every guest
  // survives.
  const { signal, ...unsignalled } = options;
  const connecting = opened ? unsignalled : options;
  const client = await connect(target, bitmap, [ALLOCATION_CONTEXT], connecting);
  opened?.push(client);
  if (bitmap === undefined || !client.export.contexts.includes(ALLOCATION_CONTEXT)) return client;
  let isMapped = false;
  try {
    isMapped = await isMappedWhereClean(client, dirtyContext(bitmap), signal);
    if (isMapped) return client;
  } finally {
    if (!isMapped && !opened) await client.close();
  }
  const other = await connect(target, bitmap, [], connecting);
  opened?.push(other);
  return other;
}

const MIB = 1024 * 1024;
/** A first look at the map, which nearly always has a clean block. In bytes. */
const FIRST_LOOK = 64 * MIB;
/** The most that QEMU copies before a guest's write: a cluster of the scratch image. In bytes. */
const LARGEST_BLOCK = 2 * MIB;

/**
 * In QEMU's snapshot-access exports, a block status request that touches a block without a dirty byte fails
 * for all contexts together. There the bitmap can be queried only without the allocation. The first reply
 * with such a block decides, so the beginning of the disk is looked at by itself: the pull asks for all of it
 * once more. A clean byte decides nothing: the bitmap may be finer than the blocks that QEMU copies.
 */
async function isMappedWhereClean(
  client: NbdClient,
  dirtyName: string,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  const { size } = client.export;
  const length = Math.min(FIRST_LOOK, size);
  const heeding = signal ? { signal } : {};
  try {
    const isFound = await hasCleanBlock(client, dirtyName, { length, ...heeding });
    if (!isFound && length < size) await hasCleanBlock(client, dirtyName, { offset: length, ...heeding });
    return true;
  } catch (error) {
    if (error instanceof RequestError && error.code === "NBD_REQUEST_FAILED") return false;
    throw error;
  }
}

/** Whether a block in this part of the disk is clean. Asks for no more than it takes to find one. */
async function hasCleanBlock(client: NbdClient, dirtyName: string, part: StatusOptions): Promise<boolean> {
  const { size } = client.export;
  for await (const { offset, runs } of client.blockStatus(part)) {
    const { ends = [], flags = [] } = runs.get(dirtyName) ?? {};
    let start = offset;
    for (const [i, end] of ends.entries()) {
      const block = Math.ceil(start / LARGEST_BLOCK) * LARGEST_BLOCK;
      const isClean = ((flags[i] ?? DIRTY) & DIRTY) === 0;
      if (isClean && block < end && end >= Math.min(block + LARGEST_BLOCK, size)) return true;
      start = end;
    }
  }
  return false;
}

/** The least that QEMU copies before a guest's write, in bytes. A larger unit is a multiple of it. */
const SNAPSHOT_BLOCK = 64 * 1024;

/**
 * The source for reading from an export that `openExport` opened.
 *
 * In QEMU 7 a snapshot-access read that begins in a block that the guest has overwritten since, and goes on
 * into one that it hasn't, returns the guest's new bytes for the first (fixed in 8.0, `hbitmap_status`). A
 * read within one block is always right. Extended headers came with 8.2, so servers with them don't need
 * smaller reads.
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

/**
 * How many connections a pull has from its first segment on. One encrypted connection keeps both sides busy;
 * a second one would slow it.
 */
export function fewestConnections(client: NbdClient): number {
  return client.isEncrypted ? 1 : CONNECTIONS;
}

/**
 * Whether clean bytes can be read too. If not, they have no allocation either, and `openExport` left that
 * context out.
 */
export function mayReadClean(client: NbdClient, bitmap: string | undefined): boolean {
  return bitmap === undefined || client.export.contexts.includes(ALLOCATION_CONTEXT);
}

async function connect(
  target: string | NbdAddress,
  bitmap: string | undefined,
  optionalContexts: readonly string[],
  options: ConnectOptions,
): Promise<NbdClient> {
  try {
    return await NbdClient.connect(target, {
      ...options,
      metaContexts: bitmap === undefined ? [] : [dirtyContext(bitmap)],
      optionalContexts,
    });
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
  /**
   * Passes all bytes of the stretches to `sink`, in pieces, or throws. Passes no more once `signal` is
   * aborted.
   */
  readPieces(
    stretches: readonly Stretch[],
    sink: PieceSink,
    options: { readonly signal: AbortSignal },
  ): Promise<void>;
}

/** With two connections, the server fills one while the client empties the other. */
export const CONNECTIONS = 2;
