import { realpath } from "node:fs/promises";
import { resolve } from "node:path";
import { formatS3Address, parseS3Address } from "../src/backup/s3/address.js";
import { namesStore } from "../src/backup/storage/open-store.js";

/**
 * One repository has one place, however it is written: an absolute path, or an address without what only says
 * how to get in.
 * @throws {UsageError} `E_S3_ADDRESS`
 */
export function placeOf(repository: string): string {
  if (!namesStore(repository)) return resolve(repository);
  const { bucket, prefix, endpoint } = parseS3Address(repository);
  return formatS3Address({ bucket, prefix, endpoint });
}

/** The same, without symbolic links in the path of one that is there. */
export async function realPlaceOf(repository: string): Promise<string> {
  const place = placeOf(repository);
  return namesStore(place) ? place : await realpath(place).catch(() => place);
}
