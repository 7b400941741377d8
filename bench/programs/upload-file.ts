/**
 * Uploads a file with AWS's SDK: `upload-file.js FILE s3://BUCKET/KEY`. Eight parts of 8 MiB in flight, which
 * are read from the file when their turn comes. It computes nothing but what the protocol wants.
 */

import { open } from "node:fs/promises";
import {
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  S3Client,
  UploadPartCommand,
} from "@aws-sdk/client-s3";

const PART_BYTES = 8 * 1024 * 1024;
const IN_FLIGHT = 8;

const [path = "", address = ""] = process.argv.slice(2);
const [, Bucket = "", Key = ""] = /^s3:\/\/([^/]+)\/(.*)$/.exec(address) ?? [];
const client = new S3Client({ forcePathStyle: true, requestChecksumCalculation: "WHEN_REQUIRED" });
const file = await open(path);
const { size } = await file.stat();
const { UploadId } = await client.send(new CreateMultipartUploadCommand({ Bucket, Key }));
const count = Math.ceil(size / PART_BYTES);
const Parts = new Array<{ PartNumber: number; ETag: string | undefined }>(count);

let next = 0;
async function lane(): Promise<void> {
  const buffer = Buffer.alloc(PART_BYTES);
  for (let index = next++; index < count; index = next++) {
    const { bytesRead } = await file.read(buffer, 0, PART_BYTES, index * PART_BYTES);
    const Body = buffer.subarray(0, bytesRead);
    const PartNumber = index + 1;
    const { ETag } = await client.send(new UploadPartCommand({ Bucket, Key, UploadId, PartNumber, Body }));
    Parts[index] = { PartNumber, ETag };
  }
}
await Promise.all(Array.from({ length: IN_FLIGHT }, lane));
await client.send(new CompleteMultipartUploadCommand({ Bucket, Key, UploadId, MultipartUpload: { Parts } }));
process.exit();
