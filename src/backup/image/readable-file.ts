import { createHash } from "node:crypto";
import { anySignal } from "../../nbd/index.js";
import { copyPrivately, createPrivate, sha256OfFile } from "../host/plain-files.js";
import { type Block, blocksAhead } from "./blocks-ahead.js";
import { ImageFile, type ReadOptions } from "./image-file.js";

/** A file that is read at positions. All offsets and lengths are bytes. */
export interface ReadableFile {
  /** For messages. */
  readonly path: string;
  size(): Promise<number>;
  /**
   * Fills `target` from `position`, up to the end of the file.
   * @returns bytes read
   */
  read(target: Uint8Array, position: number): Promise<number>;
  /**
   * Fills all of `target` from `position`. Bytes at or after `end` become zeroes.
   * @throws {DamageError} the file ends before `end`
   */
  fill(target: Uint8Array, position: number, end: number): Promise<void>;
  /** May be called more than once. */
  close(): Promise<void>;
}

/** How a file elsewhere is read. */
export interface RemoteOptions extends Pick<ReadOptions, "signal"> {
  /**
   * Whoever reads knows what he needs: each read is one request for just these bytes, and nothing is read
   * ahead or kept; default: small reads share larger requests.
   */
  readonly exact?: boolean | undefined;
}

/** A file that is on no path of this machine. It can be opened any number of times, on this thread only. */
export interface RemoteFile {
  /** For messages; two files never have the same. */
  readonly path: string;
  /** @throws {DamageError} it is missing */
  open(options?: RemoteOptions): Promise<ReadableFile>;
}

/** Where a file is: a path of this machine, or elsewhere. */
export type FilePlace = string | RemoteFile;

/** Bytes of a request for a part of a file elsewhere that is read as a whole. */
const PIECE_BYTES = 1024 * 1024;
const PIECES_AT_ONCE = 4;

/**
 * Opens a file to be read. On this machine, a link at the end of the path is not followed.
 * @throws {DamageError} for anything but a regular file
 * @throws the file system's or the store's error
 */
export async function openPlace(place: FilePlace, options?: ReadOptions): Promise<ReadableFile> {
  return typeof place === "string" ? await ImageFile.open(place, options) : await place.open(options);
}

/** A path that tells one place from another. Only of a place on this machine does it lead to the file. */
export function pathOf(place: FilePlace): string {
  return typeof place === "string" ? place : place.path;
}

/**
 * The SHA-256 of a file, in hexadecimal digits.
 * @throws {DamageError} it is a link, or no regular file
 * @throws the signal's reason
 */
export async function sha256Of(place: FilePlace, signal?: AbortSignal): Promise<string> {
  if (typeof place === "string") return await sha256OfFile(place, signal);
  const hash = createHash("sha256");
  for await (const bytes of piecesOf(place, signal)) {
    signal?.throwIfAborted();
    hash.update(bytes);
  }
  return hash.digest("hex");
}

/**
 * Copies the bytes of a file into a new one on this machine, which only its owner may read and write.
 * @param most bytes that are copied; the file may have been exchanged for a longer one
 * @throws the file system's error: EEXIST; the signal's reason
 */
export async function copyFrom(
  place: FilePlace,
  to: string,
  { most, signal }: { readonly most: number; readonly signal?: AbortSignal | undefined },
): Promise<void> {
  if (typeof place === "string") return await copyPrivately(place, to, { most, signal });
  await using target = await createPrivate(to);
  let left = most;
  for await (const bytes of piecesOf(place, signal)) {
    signal?.throwIfAborted();
    await target.writeFile(bytes.subarray(0, left));
    left -= bytes.length;
    if (left <= 0) return;
  }
}

/** The content of a file elsewhere, from front to back. A piece is valid until the next one is asked for. */
async function* piecesOf(place: RemoteFile, signal: AbortSignal | undefined): AsyncGenerator<Buffer> {
  const unwanted = new AbortController();
  const file = await place.open({ signal: anySignal(signal, unwanted.signal) });
  try {
    const read = async (target: Buffer, { at }: Block): Promise<void> =>
      await file.fill(target, at, at + target.length);
    const pieces = blocksAhead(blocksOf(await file.size()), PIECES_AT_ONCE, read, unwanted);
    for await (const { bytes } of pieces) yield bytes;
  } finally {
    await file.close();
  }
}

function* blocksOf(size: number): Generator<Block> {
  for (let at = 0; at < size; at += PIECE_BYTES) yield { at, length: Math.min(PIECE_BYTES, size - at) };
}
