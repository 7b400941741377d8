/**
 * Downloads all objects of a repository with AWS's SDK, and makes one image of a chain with qemu-img:
 * `download-and-convert.js s3://BUCKET/PREFIX FOLDER IMAGE TARGET`. Eight requests of 8 MiB in flight. It
 * compares nothing with anything.
 */

import { mkdir, open } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Readable } from "node:stream";
import { GetObjectCommand, ListObjectsV2Command, S3Client } from "@aws-sdk/client-s3";
import { execa } from "execa";

const REQUEST_BYTES = 8 * 1024 * 1024;
const IN_FLIGHT = 8;

const [address = "", folder = "", image = "", target = ""] = process.argv.slice(2);
const [, Bucket = "", prefix = ""] = /^s3:\/\/([^/]+)\/(.*)$/.exec(address) ?? [];
const client = new S3Client({ forcePathStyle: true, responseChecksumValidation: "WHEN_REQUIRED" });

async function* requests() {
  const { Contents = [] } = await client.send(new ListObjectsV2Command({ Bucket, Prefix: `${prefix}/` }));
  for (const { Key = "", Size = 0 } of Contents) {
    const path = join(folder, Key.slice(prefix.length));
    await mkdir(dirname(path), { recursive: true });
    const file = await open(path, "w");
    for (let at = 0; at < Size; at += REQUEST_BYTES) {
      const last = Math.min(Size, at + REQUEST_BYTES) - 1;
      yield { file, at, request: { Bucket, Key, Range: `bytes=${at}-${last}` } };
    }
  }
}

const shared = requests();
async function lane(): Promise<void> {
  for (let next = await shared.next(); !next.done; next = await shared.next()) {
    const { file, at, request } = next.value;
    const { Body } = await client.send(new GetObjectCommand(request));
    let done = at;
    for await (const bytes of Body as Readable as AsyncIterable<Buffer>) {
      await file.write(bytes, 0, bytes.length, done);
      done += bytes.length;
    }
  }
}
await Promise.all(Array.from({ length: IN_FLIGHT }, lane));
await execa("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", join(folder, image), target]);
// The descriptors end with the process.
process.exit();
