import { createHash } from "node:crypto";
import type { Readable } from "node:stream";
import { text } from "node:stream/consumers";
import { isDeepStrictEqual } from "node:util";
import {
  GetBucketLifecycleConfigurationCommand,
  type LifecycleRule,
  PutBucketLifecycleConfigurationCommand,
  type PutBucketLifecycleConfigurationCommandInput,
} from "@aws-sdk/client-s3";
import { PreconditionError } from "../base/errors.js";
import type { AskOptions } from "./asker.js";
import type { Bucket } from "./bucket.js";
import { reasonOf } from "./errors.js";

const DAYS = 7;
/** S3 takes no longer ones. */
const MOST_ID_CHARACTERS = 255;
/** What the SDK reads of rules. It drops all else, as what only one kind of store has. */
const KNOWN = new Set(
  [
    ["LifecycleConfiguration", "Rule", "ID", "Status", "Filter", "And", "Prefix", "Tag", "Key", "Value"],
    ["ObjectSizeGreaterThan", "ObjectSizeLessThan", "Expiration", "Date", "Days", "StorageClass"],
    ["ExpiredObjectDeleteMarker", "Transition", "NoncurrentVersionTransition", "NoncurrentDays"],
    ["NoncurrentVersionExpiration", "NewerNoncurrentVersions"],
    ["AbortIncompleteMultipartUpload", "DaysAfterInitiation"],
  ].flat(),
);

type Configuration = Pick<
  PutBucketLifecycleConfigurationCommandInput,
  "TransitionDefaultMinimumObjectSize"
> & {
  readonly rules: readonly LifecycleRule[];
  /** Names of elements that the SDK knows nothing of. */
  readonly strange: readonly string[];
};

/**
 * Gives the bucket a rule that ends uploads below the address's prefix which were begun a week ago. Other
 * rules stay as they are.
 * @returns whether it was put there; false if there was such a rule
 * @throws {PreconditionError} `E_S3_ACCESS`: these credentials may not do it; `E_S3_LACKS`: the store has no
 *   such rules; `E_S3_RULES`: somebody changes the rules at the same time, or the store has not kept them
 *   all; or the other rules have something that would be lost, and nothing was put there
 */
export async function addUploadRule(bucket: Bucket, options: AskOptions = {}): Promise<boolean> {
  const before = await configurationOf(bucket, options);
  const { prefix } = bucket.address;
  if (before.rules.some((rule) => endsUploads(rule, prefix))) return false;
  // A configuration has rules of one form only.
  const isOld = before.rules.some(({ Filter }) => Filter === undefined);
  const rule: LifecycleRule = {
    ID: `nbdpull uploads ${prefix}`.trim().slice(0, MOST_ID_CHARACTERS),
    Status: "Enabled",
    ...(isOld ? { Prefix: prefix } : { Filter: { Prefix: prefix } }),
    AbortIncompleteMultipartUpload: { DaysAfterInitiation: DAYS },
  };
  if (before.strange.length > 0) throw unknownRules(bucket, before.strange, rule);
  const { strange: _, ...others } = before;
  await put(bucket, { ...others, rules: [...before.rules, rule] }, options);
  // A store has no condition for it: of two who change the rules at the same time one is not seen.
  const after = await configurationOf(bucket, options);
  const isThere = (rule: LifecycleRule): boolean =>
    after.rules.some((other) => isDeepStrictEqual(other, rule));
  const isKept = before.rules.every(isThere) && isSameSize(before, after);
  if (isKept && after.rules.some((other) => endsUploads(other, prefix))) return true;
  const message = `the lifecycle rules of ${bucket.address.bucket} at ${bucket.store} are not what was put there: somebody else changes them at the same time, or the store has not kept them all. ${lookAt(bucket)}. Those that were there before: ${JSON.stringify(before.rules)}`;
  throw new PreconditionError("E_S3_RULES", message, { details: { rules: before.rules } });
}

function isSameSize(one: Configuration, other: Configuration): boolean {
  // A store may have it told only where there are rules.
  const size = one.TransitionDefaultMinimumObjectSize;
  return size === undefined || size === other.TransitionDefaultMinimumObjectSize;
}

function unknownRules(bucket: Bucket, strange: readonly string[], rule: LifecycleRule): PreconditionError {
  const message = `the lifecycle rules of ${bucket.address.bucket} at ${bucket.store} have something that would be lost if rules were put there by this program, which does not know it (${strange.join(", ")}): nothing was put. ${lookAt(bucket)}, and add this one with the store's own tool: ${JSON.stringify(rule)}`;
  return new PreconditionError("E_S3_RULES", message, { details: { unknown: strange } });
}

function lookAt({ address }: Bucket): string {
  return `Look at them: aws s3api get-bucket-lifecycle-configuration --bucket ${address.bucket}`;
}

function endsUploads(rule: LifecycleRule, prefix: string): boolean {
  const { Status, Filter, AbortIncompleteMultipartUpload: abort } = rule;
  if (Status !== "Enabled" || abort === undefined) return false;
  const covered = Filter === undefined ? rule.Prefix : Filter.Prefix;
  const isForAll = Filter !== undefined && Object.values(Filter).every((each) => each === undefined);
  return isForAll || (covered !== undefined && prefix.startsWith(covered));
}

async function configurationOf(bucket: Bucket, options: AskOptions): Promise<Configuration> {
  let answered = "";
  try {
    const { Rules = [], TransitionDefaultMinimumObjectSize } = await bucket.ask(
      "reading the lifecycle rules of",
      undefined,
      options,
      async (abortSignal) => {
        const command = new GetBucketLifecycleConfigurationCommand({ Bucket: bucket.address.bucket });
        command.middlewareStack.add(
          (next) => async (args) => {
            const result = await next(args);
            const response = result.response as { body: Readable | Uint8Array };
            answered = await text(response.body as Readable);
            response.body = Buffer.from(answered);
            return result;
          },
          { step: "deserialize", name: "keepText", priority: "low" },
        );
        return await bucket.client.send(command, { abortSignal });
      },
    );
    const names = [...answered.matchAll(/<([A-Za-z][^\s/>]*)/g)].map(([, name = ""]) => name);
    const strange = [...new Set(names)].filter((name) => !KNOWN.has(name));
    return { rules: Rules, strange, TransitionDefaultMinimumObjectSize };
  } catch (error) {
    // With any other answer there may be rules, which would be lost.
    if (reasonOf((error as Error).cause) !== "NoSuchLifecycleConfiguration") throw error;
    return { rules: [], strange: [] };
  }
}

async function put(
  bucket: Bucket,
  { rules, ...rest }: Omit<Configuration, "strange">,
  options: AskOptions,
): Promise<void> {
  const request = {
    Bucket: bucket.address.bucket,
    LifecycleConfiguration: { Rules: [...rules] },
    ...rest,
  };
  await bucket.ask("writing the lifecycle rules of", undefined, options, (abortSignal) => {
    const command = new PutBucketLifecycleConfigurationCommand(request);
    // The SDK sends a checksum that older stores don't know; they want this one.
    command.middlewareStack.add(
      (next) => async (args) => {
        const { body, headers } = args.request as {
          body: string | Uint8Array;
          headers: Record<string, string>;
        };
        headers["content-md5"] = createHash("md5").update(body).digest("base64");
        return await next(args);
      },
      { step: "build", name: "contentMd5", priority: "low" },
    );
    return bucket.client.send(command, { abortSignal });
  });
}
