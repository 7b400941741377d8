/** Lists of what a bucket has: page by page, sorted by key, and compared with what was asked for. */
import {
  ListMultipartUploadsCommand,
  type ListMultipartUploadsOutput,
  type ListMultipartUploadsRequest,
  ListObjectsV2Command,
  ListPartsCommand,
  type ListPartsCommandOutput,
} from "@aws-sdk/client-s3";
import type { Asker, AskOptions, PendingUpload, StoredObject, UploadedPart } from "./asker.js";
import { statusOf } from "./errors.js";
import { bareETag } from "./etags.js";

/** More answers to one question would be a store that never ends. */
const MOST_PAGES = 100_000;

/**
 * The objects whose keys begin with `prefix`, sorted by key.
 * @param prefix with the address's prefix
 */
export async function* listObjects(
  bucket: Asker,
  prefix: string,
  options: AskOptions,
): AsyncGenerator<StoredObject> {
  for await (const page of pages(bucket, prefix, undefined, options)) {
    for (const { Key, Size, ETag, LastModified } of page.Contents ?? []) {
      if (Key === undefined || !Key.startsWith(prefix) || Size === undefined || !LastModified) {
        throw bucket.nonsense("an object that was not asked for", prefix);
      }
      if (!bareETag(ETag)) {
        // Nobody could tell it from one that takes its place.
        throw bucket.nonsense("an object without an ETag", Key);
      }
      yield { key: Key, size: Size, etag: bareETag(ETag), modifiedAt: LastModified };
    }
  }
}

/** The names between `prefix` and the next slash, sorted: what would be folders. */
export async function listFolders(bucket: Asker, prefix: string, options: AskOptions): Promise<string[]> {
  const names: string[] = [];
  for await (const page of pages(bucket, prefix, "/", options)) {
    for (const { Prefix } of page.CommonPrefixes ?? []) {
      if (!Prefix?.startsWith(prefix) || !Prefix.endsWith("/")) {
        throw bucket.nonsense("a folder that was not asked for", prefix);
      }
      names.push(Prefix.slice(prefix.length, -1));
    }
  }
  return names.sort();
}

async function* pages(bucket: Asker, prefix: string, Delimiter: string | undefined, options: AskOptions) {
  let token: string | undefined;
  for (let count = 0; count < MOST_PAGES; count += 1) {
    const ContinuationToken = token;
    const page = await bucket.ask("listing", prefix, options, (abortSignal) =>
      bucket.client.send(
        new ListObjectsV2Command({
          Bucket: bucket.address.bucket,
          Prefix: prefix,
          Delimiter,
          ContinuationToken,
        }),
        { abortSignal },
      ),
    );
    yield page;
    if (!page.IsTruncated) return;
    token = page.NextContinuationToken;
    if (token === undefined || token === ContinuationToken) break;
  }
  throw bucket.nonsense("a list without an end", prefix);
}

/** Uploads below a prefix that were begun and neither completed nor aborted. */
export async function* listUploads(
  bucket: Asker,
  prefix: string,
  options: AskOptions,
): AsyncGenerator<PendingUpload> {
  let KeyMarker: string | undefined;
  let UploadIdMarker: string | undefined;
  for (let count = 0; count < MOST_PAGES; count += 1) {
    const request: ListMultipartUploadsRequest = {
      Bucket: bucket.address.bucket,
      Prefix: prefix,
      KeyMarker,
      UploadIdMarker,
    };
    const page: ListMultipartUploadsOutput = await bucket.ask(
      "listing uploads of",
      prefix,
      options,
      (abortSignal) => bucket.client.send(new ListMultipartUploadsCommand(request), { abortSignal }),
    );
    for (const { Key, UploadId, Initiated } of page.Uploads ?? []) {
      if (!Key?.startsWith(prefix) || UploadId === undefined || !Initiated) {
        throw bucket.nonsense("an upload that was not asked for", prefix);
      }
      yield { key: Key, uploadId: UploadId, begunAt: Initiated };
    }
    if (!page.IsTruncated) return;
    KeyMarker = page.NextKeyMarker;
    UploadIdMarker = page.NextUploadIdMarker;
  }
  throw bucket.nonsense("a list of uploads without an end", prefix);
}

/** The parts of an upload that the store has, by their numbers, from 1. None: the upload may be gone. */
export async function listParts(
  bucket: Asker,
  { key, uploadId }: Pick<PendingUpload, "key" | "uploadId">,
  options: AskOptions,
): Promise<ReadonlyMap<number, UploadedPart>> {
  const parts = new Map<number, UploadedPart>();
  let PartNumberMarker: string | undefined;
  for (let count = 0; count < MOST_PAGES; count += 1) {
    const request = { Bucket: bucket.address.bucket, Key: key, UploadId: uploadId, PartNumberMarker };
    let page: ListPartsCommandOutput;
    try {
      page = await bucket.ask("listing parts of", key, options, (abortSignal) =>
        bucket.client.send(new ListPartsCommand(request), { abortSignal }),
      );
    } catch (error) {
      if (statusOf((error as Error).cause) === 404) return new Map();
      throw error;
    }
    for (const { PartNumber, Size, ETag } of page.Parts ?? []) {
      if (PartNumber !== undefined && Size !== undefined) {
        parts.set(PartNumber, { size: Size, etag: bareETag(ETag) });
      }
    }
    if (!page.IsTruncated || page.NextPartNumberMarker === PartNumberMarker) return parts;
    PartNumberMarker = page.NextPartNumberMarker;
  }
  throw bucket.nonsense("a list of parts without an end", key);
}
