/**
 * Asks for 64 KiB at many places of an object with AWS's SDK, one after the other, in random order, and prints
 * the median time of a request in ms: `random-gets.js COUNT s3://BUCKET/KEY`. It compares nothing.
 */

import type { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import { GetObjectCommand, HeadObjectCommand, S3Client } from "@aws-sdk/client-s3";
import { READ_BYTES, shuffled } from "../random-places.js";
import { median } from "../statistics.js";

const [count = "", address = ""] = process.argv.slice(2);
const [, Bucket = "", Key = ""] = /^s3:\/\/([^/]+)\/(.*)$/.exec(address) ?? [];
const client = new S3Client({ forcePathStyle: true, responseChecksumValidation: "WHEN_REQUIRED" });
const { ContentLength = 0 } = await client.send(new HeadObjectCommand({ Bucket, Key }));
const places = Array.from({ length: Math.floor(ContentLength / READ_BYTES) }, (_, i) => i * READ_BYTES);
const times: number[] = [];
for (const at of shuffled(places, 1).slice(0, Number(count))) {
  const began = performance.now();
  const Range = `bytes=${at}-${at + READ_BYTES - 1}`;
  const { Body } = await client.send(new GetObjectCommand({ Bucket, Key, Range }));
  await buffer(Body as Readable);
  times.push(performance.now() - began);
}
process.stdout.write(`${median(times).toFixed(3)}\n`);
process.exit();
