import { randomBytes } from "node:crypto";
import type { Bucket } from "../s3/bucket.js";
import { ComposedLayout } from "../s3/composed-layout.js";
import { copiesParts } from "../s3/copies-parts.js";
import { cheapBytesOf } from "../s3/part-layout.js";
import type { ComposedOptions, UploadOptions } from "../s3/upload.js";
import { asideName } from "./aside-name.js";

/**
 * How a file is composed by the store whose parts would be too large for the memory.
 *
 * What they are made of lies beside the file meanwhile, under names of its family: whoever clears the point
 * away removes it.
 * @returns undefined: parts that fit suffice, or the store does not compose any
 * @throws {BackupError} as `copiesParts`
 */
export async function composedParts(
  bucket: Bucket,
  key: string,
  options: UploadOptions,
): Promise<ComposedOptions | undefined> {
  const { mostBytes, signal } = options;
  const cheapBytes = cheapBytesOf(options);
  if (!ComposedLayout.isNeeded(mostBytes, cheapBytes)) return undefined;
  // So that nothing which a process without the lease removes belongs to another one.
  const nonce = randomBytes(2).toString("hex");
  const keyOf = (part: number): string => asideName(key, `${nonce}${part.toString(16).padStart(4, "0")}`);
  if (!(await copiesParts(bucket, keyOf(0), keyOf(1), { signal }))) return undefined;
  return { layout: ComposedLayout.of(mostBytes, cheapBytes), keyOf };
}
