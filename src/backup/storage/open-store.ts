import { isS3Address, isSameStore, parseS3Address } from "../s3/address.js";
import { MOST_BARE_IMAGES, MOST_IMAGES } from "../s3/part-layout.js";
import type { StoreRoot } from "./stored-folder.js";

/** Whether this is the address of an object store and no path of this machine. */
export function namesStore(path: string): boolean {
  return isS3Address(path);
}

/**
 * Call it before an address is shown or written anywhere: one that is none may have credentials in it.
 * @throws {UsageError} `E_S3_ADDRESS`: it begins as an address of an object store, and is none
 */
export function refuseBadAddress(path: string): void {
  if (namesStore(path)) parseS3Address(path);
}

/**
 * How many points one process makes there at a time: they share the memory that uploads may take.
 * @param wanted how many it would make elsewhere
 * @param isCopied whether their images are copied, each before its digest file
 */
export function pointsAtOnce(path: string, wanted: number, isCopied = false): number {
  return namesStore(path) ? Math.min(wanted, isCopied ? MOST_BARE_IMAGES : MOST_IMAGES) : wanted;
}

/**
 * Whether two places are one, as `realPath` told them: paths of this machine, or addresses with endpoints.
 * @throws {UsageError} `E_S3_ADDRESS`
 */
export function isSamePlace(one: string, other: string): boolean {
  if (one === other || !namesStore(one) || !namesStore(other)) return one === other;
  return isSameStore(parseS3Address(one), parseS3Address(other));
}

/**
 * Opens the place in an object store that an address names. The caller closes it. AWS's SDK is loaded only
 * here.
 * @param options.signal ends every request to the store, also later ones
 * @throws {UsageError} `E_S3_ADDRESS`, `E_S3_CA`
 * @throws {PreconditionError} the bucket is not there, or these credentials may not use it
 * @throws {BackupError} `E_S3_UNREACHABLE`
 */
export async function openStore(
  address: string,
  options: { readonly signal?: AbortSignal | undefined } = {},
): Promise<StoreRoot> {
  const parsed = parseS3Address(address);
  const [{ Bucket }, { S3Root }] = await Promise.all([import("../s3/bucket.js"), import("./s3-folder.js")]);
  return new S3Root(await Bucket.open(parsed, options));
}
