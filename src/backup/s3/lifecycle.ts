import { createHash } from "node:crypto";
import {
  GetBucketLifecycleConfigurationCommand,
  type LifecycleRule,
  PutBucketLifecycleConfigurationCommand,
  type PutBucketLifecycleConfigurationCommandInput,
} from "@aws-sdk/client-s3";
import { PreconditionError } from "../base/errors.js";
import type { AskOptions, Bucket } from "./bucket.js";
import { reasonOf, statusOf } from "./errors.js";

const DAYS = 7;
/** S3 takes no longer ones. */
const MOST_ID_CHARACTERS = 255;

type Configuration = Pick<
  PutBucketLifecycleConfigurationCommandInput,
  "TransitionDefaultMinimumObjectSize"
> & { readonly rules: readonly LifecycleRule[] };

/**
 * Gives the bucket a rule that ends uploads below the address's prefix which were begun a week ago. Other
 * rules stay as they are.
 * @returns whether it was put there; false if there was such a rule
 * @throws {PreconditionError} `E_S3_ACCESS`: these credentials may not do it; `E_S3_LACKS`: the store has no
 *   such rules; `E_S3_RULES`: somebody changes the rules at the same time
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
  await put(bucket, { ...before, rules: [...before.rules, rule] }, options);
  // A store has no condition for it: of two who change the rules at the same time one is not seen.
  const after = await configurationOf(bucket, options);
  const isThere = ({ ID }: LifecycleRule): boolean => after.rules.some((other) => other.ID === ID);
  if ([...before.rules, rule].every(isThere)) return true;
  const message = `the lifecycle rules of ${bucket.address.bucket} at ${bucket.store} are not what was put there: somebody else changes them at the same time. Look at them: aws s3api get-bucket-lifecycle-configuration --bucket ${bucket.address.bucket}`;
  throw new PreconditionError("E_S3_RULES", message);
}

function endsUploads(rule: LifecycleRule, prefix: string): boolean {
  const { Status, Filter, AbortIncompleteMultipartUpload: abort } = rule;
  if (Status !== "Enabled" || abort === undefined) return false;
  const covered = Filter === undefined ? rule.Prefix : Filter.Prefix;
  const isForAll = Filter !== undefined && Object.values(Filter).every((each) => each === undefined);
  return isForAll || (covered !== undefined && prefix.startsWith(covered));
}

async function configurationOf(bucket: Bucket, options: AskOptions): Promise<Configuration> {
  const request = { Bucket: bucket.address.bucket };
  try {
    const { Rules = [], TransitionDefaultMinimumObjectSize } = await bucket.ask(
      "reading the lifecycle rules of",
      undefined,
      options,
      (abortSignal) =>
        bucket.client.send(new GetBucketLifecycleConfigurationCommand(request), { abortSignal }),
    );
    return { rules: Rules, TransitionDefaultMinimumObjectSize };
  } catch (error) {
    const { cause } = error as Error;
    const isNone = reasonOf(cause) === "NoSuchLifecycleConfiguration";
    if (isNone || (statusOf(cause) === 404 && reasonOf(cause) !== "NoSuchBucket")) return { rules: [] };
    throw error;
  }
}

async function put(bucket: Bucket, { rules, ...rest }: Configuration, options: AskOptions): Promise<void> {
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
