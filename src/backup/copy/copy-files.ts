import { DamageError } from "../base/errors.js";
import { ImageFile } from "../image/image-file.js";
import { createAt, type NewFile } from "../image/new-file.js";
import type { RateLimit } from "../pull/rate-limit.js";
import type { Manifest } from "../repository/manifest.js";
import type { PendingPoint } from "../repository/pending-point.js";
import { manifestText } from "../repository/read-manifest.js";
import type { Repository } from "../repository/repository.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import { verifyPoint } from "../verify/verify.js";
import { CopiedFile } from "./copied-file.js";
import { CopiedFolder } from "./copied-folder.js";
import { asCopiedText, copiedName, fileNamesOf, mostBytesOf } from "./point-files.js";

interface CopyFilesOptions {
  readonly from: Repository;
  /** The name of its folder. */
  readonly domain: string;
  readonly manifest: Manifest;
  readonly limit?: RateLimit | undefined;
  readonly signal: AbortSignal;
  /** Called with the number of bytes that were copied since the last call. */
  readonly onBytes: (bytes: number) => void;
}

/**
 * Copies the files of a point into one that is being made, and proves them. What a killed run has left of
 * them is gone on with: in an object store, bytes that are there are compared with the original's and not
 * sent again; in a folder, what is there of an image with digests is not read from the original again, since
 * the digests tell whether it is right. If they don't, all of it is copied anew.
 * @returns the manifest's text
 * @throws {DamageError} what was copied is damaged
 */
export async function copyFiles(pending: PendingPoint, options: CopyFilesOptions): Promise<string> {
  const { from, domain, manifest, onBytes } = options;
  await using folder = await from.openPoint(domain, manifest.id);
  const text = asCopiedText(await manifestText(folder, manifest), manifest);
  let bytes = 0;
  const counted = (more: number): void => {
    bytes += more;
    onBytes(more);
  };
  const first = await copyAll(pending, folder, { ...options, onBytes: counted }, true);
  try {
    await prove(first.files, options);
  } catch (error) {
    if (!first.hasGoneOn || !(error instanceof DamageError)) throw error;
    onBytes(-bytes);
    await prove((await copyAll(pending, folder, options, false)).files, options);
  }
  return text;
}

interface CopiedFiles {
  /** By the names that they have in the repository that is copied. */
  readonly files: ReadonlyMap<string, CopiedFile>;
  /** Whether something of them was there. */
  readonly hasGoneOn: boolean;
}

async function copyAll(
  pending: PendingPoint,
  folder: StoredFolder,
  { from, manifest, limit, signal, onBytes }: CopyFilesOptions,
  goesOn: boolean,
): Promise<CopiedFiles> {
  const files = new Map<string, CopiedFile>();
  let hasGoneOn = false;
  for (const name of fileNamesOf(manifest)) {
    const copy = copiedName(manifest, name);
    const place = pending.at(copy);
    const left = goesOn && hasDigests(manifest, name) ? await leftFile(pending, copy) : undefined;
    if (left) hasGoneOn = true;
    else await pending.folder?.unlink(copy);
    const isHere = typeof place === "string";
    const copied = await CopiedFile.copy(
      folder.at(name),
      (mostBytes: number): Promise<NewFile> => createAt(place, { mostBytes, inOrder: true }),
      {
        ...{ limit, signal, onBytes, left, most: mostBytesOf(manifest, name) },
        leftWhole: isHere ? undefined : (size) => place.leftWhole?.(size),
        // What lies here costs less than to fetch it from a store twice.
        copy: isHere && (left || from.isInStore) ? place : undefined,
      },
    );
    files.set(name, copied);
  }
  return { files, hasGoneOn };
}

/** A file that a killed run has left; undefined: none, or none that can be gone on with. */
async function leftFile(pending: PendingPoint, name: string): Promise<ImageFile | undefined> {
  const found = await pending.folder?.find(name);
  const place = pending.at(name);
  if (!found?.isFile() || typeof place !== "string") return undefined;
  return await ImageFile.openForWriting(place);
}

function hasDigests({ disks }: Manifest, name: string): boolean {
  return disks.some(({ file, digests }) => file === name && digests !== null);
}

/** @throws {DamageError} what was copied is damaged */
async function prove(
  files: ReadonlyMap<string, CopiedFile>,
  { from, domain, manifest, signal }: CopyFilesOptions,
): Promise<void> {
  const { findings } = await verifyPoint(from, domain, manifest, {
    signal,
    openFolder: async () => new CopiedFolder(await from.openPoint(domain, manifest.id), files),
  });
  const damage = findings.find(({ severity }) => severity === "damage");
  if (!damage) return;
  const where = damage.disk === undefined ? "" : `disk ${damage.disk}: `;
  throw new DamageError("E_CHAIN", `${where}${damage.message}`, { details: { point: manifest.id } });
}
